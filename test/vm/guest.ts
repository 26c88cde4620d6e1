/**
 * A virtual machine of QEMU's (software emulation) that runs the small Linux of initramfs.ts and obeys shell commands.
 * VM_DEBUG=1 shows its console; VM_ACCEL=kvm uses the processor, where that works.
 */

import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import type { Socket } from 'node:net';
import type { Readable, Writable } from 'node:stream';
import { findKernel, makeInitramfs } from './initramfs.ts';

/** How long a command may take: a loaded machine emulates slowly. */
const COMMAND_MS = 120_000;
/** Pages that the kernel has just cleared are sent by a migration because of that: it is not to clear them. */
export const KERNEL_ARGUMENTS =
  'console=ttyS0 quiet panic=-1 mitigations=off tsc=unstable nokaslr init_on_alloc=0';
/** The guest's kernel has come to grief. */
const KERNEL_CRASH = /Kernel panic|kernel BUG|BUG: |Oops: |general protection fault/;

/** A machine's console, and the machine's end. */
interface Machine {
  readonly input: Writable;
  readonly outputs: readonly Readable[];
  kill(): void;
  /** Settles when it has ended. */
  readonly ended: Promise<unknown>;
}

export class Guest {
  readonly #machine: Machine;
  #text = '';
  #wake: (() => void) | null = null;
  #ended = false;
  /** Its kernel has said that it cannot go on, or its shell has not answered. */
  isDead = false;

  private constructor(machine: Machine) {
    this.#machine = machine;
    for (const output of machine.outputs)
      output.on('data', (chunk: Buffer) => {
        this.#text += chunk.toString('latin1').replaceAll('\r', '');
        if (process.env.VM_DEBUG !== undefined) process.stderr.write(chunk);
        this.#wake?.();
      });
    void machine.ended.then(() => {
      this.#ended = true;
      this.#wake?.();
    });
  }

  /** A machine that somebody else has started, by its console. */
  static attach(console: Socket): Guest {
    const ended = new Promise((resolve) => console.once('close', resolve));
    return new Guest({ input: console, outputs: [console], kill: () => console.destroy(), ended });
  }

  /** Starts a machine with these devices (arguments of QEMU) and waits until it obeys. `dir` is for its files. */
  static async boot(dir: string, devices: readonly string[], memoryMiB = 192): Promise<Guest> {
    const guest = Guest.start(dir, devices, memoryMiB);
    await guest.waitFor(/^READY$/m);
    return guest;
  }

  /** As boot, for a machine that may have to wait for its guest. */
  static start(dir: string, devices: readonly string[], memoryMiB = 192): Guest {
    const found = findKernel();
    if (found === null) throw new Error('no kernel');
    const initrd = `${dir}/initrd`;
    writeFileSync(initrd, makeInitramfs(found.modules));
    const child = spawn(
      'qemu-system-x86_64',
      [
        ...[
          '-nodefaults',
          '-display',
          'none',
          '-serial',
          'stdio',
          '-machine',
          'pc',
          '-accel',
          process.env.VM_ACCEL ?? 'tcg',
        ],
        ...['-m', String(memoryMiB)],
        ...['-object', `memory-backend-memfd,id=mem,size=${memoryMiB}M,share=on`, '-numa', 'node,memdev=mem'],
        ...['-kernel', found.kernel, '-initrd', initrd],
        ...['-append', KERNEL_ARGUMENTS],
        ...devices,
      ],
      { stdio: ['pipe', 'pipe', 'pipe'] },
    );
    return new Guest({
      input: child.stdin,
      outputs: [child.stdout, child.stderr],
      kill: () => child.kill('SIGKILL'),
      ended: new Promise((resolve) => child.once('close', resolve)),
    });
  }

  /** Runs a shell command; returns what it printed. Throws when it fails. */
  async run(command: string): Promise<string> {
    this.#text = '';
    if (process.env.VM_DEBUG !== undefined) process.stderr.write(`> ${command}\n`);
    this.#machine.input.write(`${command}\n`);
    const before = await this.waitFor(/^STATUS (\d+)$/m);
    const status = /^STATUS (\d+)$/m.exec(this.#text)?.[1];
    if (status !== '0') throw new Error(`in the guest: ${command}: status ${status}\n${before}`);
    return before.trim();
  }

  /** Resets the machine and waits until it obeys again. */
  async reboot(): Promise<void> {
    this.#text = '';
    this.#machine.input.write('sync; echo b > /proc/sysrq-trigger\n');
    await this.waitFor(/^READY$/m);
  }

  /** Waits for a line; returns what stood before it. */
  async waitFor(pattern: RegExp): Promise<string> {
    const deadline = Date.now() + COMMAND_MS;
    for (;;) {
      const match = pattern.exec(this.#text);
      if (match !== null) return this.#text.slice(0, match.index);
      const leftMs = deadline - Date.now();
      if (leftMs <= 0 || KERNEL_CRASH.test(this.#text)) this.isDead = true;
      if (this.#ended || this.isDead) throw new Error(`no ${pattern} from the guest:\n${this.#text}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, leftMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  async end(): Promise<void> {
    if (this.#ended) return;
    this.#machine.kill();
    await this.#machine.ended;
  }
}
