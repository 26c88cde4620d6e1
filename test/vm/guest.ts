/**
 * A virtual machine of QEMU's (software emulation) that runs the small Linux of initramfs.ts and obeys shell commands.
 * VM_DEBUG=1 shows its console; VM_ACCEL=kvm uses the processor, where that works.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { findKernel, makeInitramfs } from './initramfs.ts';

/** How long a command may take: a loaded machine emulates slowly. */
const COMMAND_MS = 120_000;
/** The guest's kernel has come to grief. */
const KERNEL_CRASH = /Kernel panic|kernel BUG|BUG: |Oops: |general protection fault/;

export class Guest {
  readonly #child: ChildProcess;
  #text = '';
  #wake: (() => void) | null = null;
  #ended = false;
  /** Its kernel has said that it cannot go on, or its shell has not answered. */
  isDead = false;

  private constructor(child: ChildProcess) {
    this.#child = child;
    const take = (chunk: Buffer): void => {
      this.#text += chunk.toString('latin1').replaceAll('\r', '');
      if (process.env.VM_DEBUG !== undefined) process.stderr.write(chunk);
      this.#wake?.();
    };
    child.stdout?.on('data', take);
    child.stderr?.on('data', take);
    child.on('close', () => {
      this.#ended = true;
      this.#wake?.();
    });
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
        // Pages that the kernel has just cleared are sent by a migration because of that: it is not to.
        ...['-append', 'console=ttyS0 quiet panic=-1 mitigations=off tsc=unstable nokaslr init_on_alloc=0'],
        ...devices,
      ],
      { stdio: ['pipe', 'pipe', 'pipe'] },
    );
    return new Guest(child);
  }

  /** Runs a shell command; returns what it printed. Throws when it fails. */
  async run(command: string): Promise<string> {
    this.#text = '';
    if (process.env.VM_DEBUG !== undefined) process.stderr.write(`> ${command}\n`);
    this.#child.stdin?.write(`${command}\n`);
    const before = await this.waitFor(/^STATUS (\d+)$/m);
    const status = /^STATUS (\d+)$/m.exec(this.#text)?.[1];
    if (status !== '0') throw new Error(`in the guest: ${command}: status ${status}\n${before}`);
    return before.trim();
  }

  /** Resets the machine and waits until it obeys again. */
  async reboot(): Promise<void> {
    this.#text = '';
    this.#child.stdin?.write('sync; echo b > /proc/sysrq-trigger\n');
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
    const closed = new Promise((resolve) => this.#child.once('close', resolve));
    this.#child.kill('SIGKILL');
    await closed;
  }
}
