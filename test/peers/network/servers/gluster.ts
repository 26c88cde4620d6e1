/** A Gluster server of a test's own, on an address of loopback, with one volume of one brick in a scratch folder. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { waitUntil } from '../../../patience.ts';

export interface GlusterServer {
  readonly address: string;
  /** The management daemon's UNIX socket. */
  readonly socket: string;
  readonly volume: string;
  /** The folder in which the volume's files are. */
  readonly brick: string;
  /** Kills the process that serves the brick, and starts another one. */
  killBrick(): void;
  startBrick(): void;
  /** Stops (or continues) that process where it is. */
  freezeBrick(frozen: boolean): void;
  kill(): void;
}

const VOLUME = 'vol';

/** Bricks must not be on 127.0.0.1, and the port of management is fixed: an address by the process's number. */
function ownAddress(): string {
  return `127.${64 + (process.pid % 64)}.${(process.pid >> 8) % 256}.${1 + (process.pid % 250)}`;
}

export async function startGluster(dir: string): Promise<GlusterServer> {
  const at = (name: string): string => path.join(dir, name);
  const address = ownAddress();
  for (const name of ['work', 'run', 'brick']) mkdirSync(at(name));
  const options = [
    `working-directory ${at('work')}`,
    `run-directory ${at('run')}`,
    `glusterd-sockfile ${at('sock')}`,
    'transport-type socket',
    `transport.socket.bind-address ${address}`,
    'base-port 49152',
    'max-port 60999',
  ];
  const lines = options.map((option) => `  option ${option}`);
  const text = ['volume management', '  type mgmt/glusterd', ...lines, 'end-volume'].join('\n');
  writeFileSync(at('glusterd.vol'), `${text}\n`);
  const args = ['-N', '-f', at('glusterd.vol'), '-l', at('glusterd.log'), '-p', at('glusterd.pid')];
  const daemon: ChildProcess = spawn('glusterd', args, { stdio: 'ignore' });
  const admin = (...words: string[]): void => {
    const own = ['--mode=script', `--glusterd-sock=${at('sock')}`, `--log-file=${at('cli.log')}`];
    execFileSync('gluster', [...own, ...words], { stdio: 'ignore' });
  };
  const pidFile = (): string | null => {
    const folder = path.join(at('run'), 'vols', VOLUME);
    const file = existsSync(folder) ? readdirSync(folder).find((name) => name.endsWith('.pid')) : undefined;
    return file === undefined ? null : path.join(folder, file);
  };
  const signalBrick = (signal: NodeJS.Signals): void => {
    const file = pidFile();
    const pid = file === null ? 0 : Number(readFileSync(file, 'latin1'));
    if (pid > 0 && existsSync(`/proc/${pid}`)) process.kill(pid, signal);
    // Where nobody takes the dead away it would be taken for alive.
    if (file !== null && signal === 'SIGKILL') rmSync(file);
  };
  const kill = (): void => {
    signalBrick('SIGKILL');
    daemon.kill('SIGKILL');
  };
  try {
    await waitUntil('glusterd to listen', () => existsSync(at('sock')) && statSync(at('sock')).isSocket());
    admin('volume', 'create', VOLUME, `${address}:${at('brick')}`, 'force');
    // A brick that does not answer is noticed soon.
    admin('volume', 'set', VOLUME, 'network.ping-timeout', '3');
    admin('volume', 'start', VOLUME);
  } catch (error) {
    kill();
    throw error;
  }
  return {
    address,
    socket: at('sock'),
    volume: VOLUME,
    brick: at('brick'),
    killBrick: () => signalBrick('SIGKILL'),
    startBrick: () => admin('volume', 'start', VOLUME, 'force'),
    freezeBrick: (frozen) => signalBrick(frozen ? 'SIGSTOP' : 'SIGCONT'),
    kill,
  };
}
