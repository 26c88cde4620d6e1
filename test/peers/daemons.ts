/**
 * Starts a block daemon, the original's or ours, with the same command line, and tells how it ended.
 *
 * Each daemon gets its own scratch folder, which is removed when it is stopped.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { limitMs, waitUntil } from '../patience.ts';
import { QmpClient } from './qmp-client.ts';

export const repositoryRoot = path.resolve(import.meta.dirname, '../..');

export type DaemonKind = 'qblockd' | 'qemu-storage-daemon';

/** The program that is started for a kind of daemon. */
export function daemonProgram(kind: DaemonKind): string {
  return kind === 'qblockd' ? path.join(repositoryRoot, 'daemon/bin/qblockd') : 'qemu-storage-daemon';
}

/** How a process ended, and what it wrote. */
export interface ExitReport {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunningDaemon {
  readonly kind: DaemonKind;
  /** Scratch folder of this daemon. */
  readonly dir: string;
  readonly process: ChildProcess;
  readonly socketPath: string;
  /** Another monitor connection, not negotiated. */
  connect(): Promise<QmpClient>;
  /** Resolves when the process has gone. */
  readonly exited: Promise<ExitReport>;
  /** SIGTERM, then SIGKILL if that does not end it; removes the scratch folder. */
  stop(): Promise<ExitReport>;
}

export interface StartOptions {
  /** Arguments besides the QMP monitor; `$DIR` stands for the scratch folder. */
  readonly args?: readonly string[];
  /** An existing scratch folder to use; it is not removed. */
  readonly dir?: string;
  /** Environment variables besides those of the test. */
  readonly env?: Readonly<Record<string, string>>;
  /** Called with the scratch folder before the daemon starts. */
  readonly prepare?: (dir: string) => void;
}

/** A folder for sockets and images: short, since a UNIX socket path holds 107 bytes at most. */
export function makeScratchDir(): string {
  return mkdtempSync(path.join(tmpdir(), 'qb-'));
}

/** Collects the output of a process until it ends. */
export function reportOf(child: ChildProcess): Promise<ExitReport> {
  let stdout = '';
  let stderr = '';
  child.stdout?.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (status, signal) => resolve({ status, signal, stdout, stderr }));
  });
}

/** Waits until the file exists; throws when the process ends first. */
async function waitForFile(file: string, exited: Promise<ExitReport>): Promise<void> {
  let ended: string | null = null;
  exited.then(
    (report) => {
      ended = JSON.stringify(report);
    },
    (error: Error) => {
      ended = error.message;
    },
  );
  await waitUntil(`the daemon to make ${file}`, () => existsSync(file) || ended !== null);
  if (ended !== null) throw new Error(`the daemon ended at start: ${ended}`);
}

/** Starts a daemon with a QMP monitor on a UNIX socket and waits until it listens. */
export async function startDaemon(kind: DaemonKind, options: StartOptions = {}): Promise<RunningDaemon> {
  const dir = options.dir ?? makeScratchDir();
  options.prepare?.(dir);
  const socketPath = path.join(dir, 'qmp.sock');
  // The socket is there before the monitor on it: the original may lose what is sent to it or greet twice. The pid
  // file comes when every option has been executed.
  const pidFile = path.join(dir, 'pid');
  const monitor = [
    '--chardev',
    `socket,id=qmp0,path=${socketPath},server=on,wait=off`,
    '--monitor',
    'qmp0',
    '--pidfile',
    pidFile,
  ];
  const args = (options.args ?? []).map((arg) => arg.replaceAll('$DIR', dir));
  const child = spawn(daemonProgram(kind), [...monitor, ...args], {
    cwd: dir,
    env: { ...process.env, ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const exited = reportOf(child);
  const removeDir = () => {
    if (options.dir === undefined) rmSync(dir, { recursive: true, force: true });
  };
  try {
    await waitForFile(pidFile, exited);
  } catch (error) {
    child.kill('SIGKILL');
    removeDir();
    throw error;
  }
  return {
    kind,
    dir,
    process: child,
    socketPath,
    exited,
    connect: () => QmpClient.connect(socketPath),
    stop: async () => {
      child.kill('SIGTERM');
      const killer = setTimeout(() => child.kill('SIGKILL'), limitMs(10_000));
      const report = await exited;
      clearTimeout(killer);
      removeDir();
      return report;
    },
  };
}

/** Memory of a process that is in RAM and its own, in KiB. */
export function privateKib(pid: number | undefined): number {
  const text = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^RssAnon:\s+(\d+) kB$/m.exec(text)?.[1]);
}

/** A qblockd in `dir`, also where a killed one has left its socket and its pid file, and a session with it. */
export async function startWithMonitor(dir: string): Promise<{ daemon: RunningDaemon; qmp: QmpClient }> {
  for (const name of ['pid', 'qmp.sock']) rmSync(path.join(dir, name), { force: true });
  const daemon = await startDaemon('qblockd', { dir });
  const qmp = await daemon.connect();
  await qmp.negotiate();
  return { daemon, qmp };
}
