/**
 * `npm run bench:start`: what a daemon costs before it does anything. For qblockd and qemu-storage-daemon: time from
 * start to the first QMP greeting, idle memory, and the time to add many nodes and exports by QMP.
 *
 * Options: --rounds N (5), --nodes N (1000), --exports N (200).
 */

import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { hasProgram, markdownTable, median, parseOptions, sleep } from './measure.ts';

const qblockd = path.resolve(import.meta.dirname, '../../daemon/bin/qblockd');

const DAEMONS = [
  { name: 'qblockd', program: qblockd },
  { name: 'qemu-storage-daemon', program: 'qemu-storage-daemon' },
] as const;

/** Lines of a connection, one at a time. */
class Lines {
  readonly #socket: Socket;
  #partial = '';
  readonly #lines: string[] = [];
  #wake: (() => void) | null = null;

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8').on('data', (text: string) => {
      const parts = (this.#partial + text).split('\n');
      this.#partial = parts.pop() ?? '';
      this.#lines.push(...parts);
      this.#wake?.();
    });
  }

  async next(): Promise<string> {
    while (this.#lines.length === 0) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    return this.#lines.shift() ?? '';
  }

  /** Sends every command at once and waits for all replies; throws at the first error. */
  async executeAll(commands: readonly object[]): Promise<void> {
    for (const command of commands) this.#socket.write(`${JSON.stringify(command)}\n`);
    for (let left = commands.length; left > 0; ) {
      const line = await this.next();
      if (line.startsWith('{"error"') || line.includes('"error": {')) throw new Error(line);
      if (line.startsWith('{"return"')) left--;
    }
  }
}

async function connectWhenReady(socketPath: string): Promise<Socket> {
  const deadline = Date.now() + 20_000;
  while (Date.now() < deadline) {
    const socket = await new Promise<Socket | null>((resolve) => {
      const attempt = connect(socketPath);
      attempt.once('connect', () => resolve(attempt));
      attempt.once('error', () => resolve(null));
    });
    if (socket !== null) return socket;
    await sleep(1);
  }
  throw new Error('the daemon does not listen');
}

/** Resident memory in MiB, of the process alone. */
function residentMib(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? Number.NaN) / 1024;
}

interface Figures {
  readonly greetingMs: number;
  readonly idleMib: number;
  readonly nodesMs: number;
  readonly exportsMs: number;
  readonly loadedMib: number;
}

async function measureOnce(program: string, nodeCount: number, exportCount: number): Promise<Figures> {
  const folder = mkdtempSync(path.join(tmpdir(), 'qb-start-'));
  const socketPath = path.join(folder, 'qmp');
  const startMs = performance.now();
  const child = spawn(
    program,
    ['--chardev', `socket,id=c,path=${socketPath},server=on,wait=off`, '--monitor', 'c'],
    {
      stdio: ['ignore', 'ignore', 'inherit'],
    },
  );
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  try {
    const socket = await connectWhenReady(socketPath);
    const lines = new Lines(socket);
    await lines.next();
    const greetingMs = performance.now() - startMs;
    await lines.executeAll([{ execute: 'qmp_capabilities' }]);
    await sleep(500);
    const idleMib = residentMib(child.pid ?? 0);
    const nodesMs = await timed(() => lines.executeAll(addNodes(nodeCount)));
    const exportsMs = await timed(() => lines.executeAll(addExports(exportCount, folder)));
    const loadedMib = residentMib(child.pid ?? 0);
    socket.destroy();
    return { greetingMs, idleMib, nodesMs, exportsMs, loadedMib };
  } finally {
    child.kill('SIGTERM');
    await ended;
    rmSync(folder, { recursive: true, force: true });
  }
}

function addNodes(count: number): object[] {
  return Array.from({ length: count }, (_, i) => ({
    execute: 'blockdev-add',
    arguments: { driver: 'null-co', 'node-name': `node${i}` },
  }));
}

function addExports(count: number, folder: string): object[] {
  const data = { path: path.join(folder, 'nbd') };
  const adds = Array.from({ length: count }, (_, i) => ({
    execute: 'block-export-add',
    arguments: { type: 'nbd', id: `export${i}`, 'node-name': `node${i}` },
  }));
  return [{ execute: 'nbd-server-start', arguments: { addr: { type: 'unix', data } } }, ...adds];
}

async function timed(action: () => Promise<void>): Promise<number> {
  const startMs = performance.now();
  await action();
  return performance.now() - startMs;
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), { rounds: '5', nodes: '1000', exports: '200' });
  const daemons = DAEMONS.filter(({ program }) => hasProgram(program));
  const figures = new Map<string, Figures[]>(daemons.map(({ name }) => [name, []]));
  for (let round = 0; round < Number(options.rounds); round++) {
    for (const { name, program } of daemons) {
      figures.get(name)?.push(await measureOnce(program, Number(options.nodes), Number(options.exports)));
    }
  }
  const rows: [string, keyof Figures, string][] = [
    ['start to greeting', 'greetingMs', 'ms'],
    ['idle memory', 'idleMib', 'MiB'],
    [`add ${options.nodes} null-co nodes`, 'nodesMs', 'ms'],
    [`add ${options.exports} exports`, 'exportsMs', 'ms'],
    ['memory then', 'loadedMib', 'MiB'],
  ];
  const cells = rows.map(([title, key, unit]) => [
    title,
    ...daemons.map(
      ({ name }) => `${median((figures.get(name) ?? []).map((each) => each[key])).toFixed(0)} ${unit}`,
    ),
  ]);
  process.stdout.write(`${markdownTable(['median', ...daemons.map(({ name }) => name)], cells)}\n`);
}

main().catch((error: Error) => {
  process.stderr.write(`bench: ${error.message}\n`);
  process.exitCode = 1;
});
