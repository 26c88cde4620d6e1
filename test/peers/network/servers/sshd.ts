/** An OpenSSH server of a test's own, on loopback, with keys and files in a scratch folder. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import path from 'node:path';
import { freePort } from './ports.ts';

export interface SshServer {
  readonly port: number;
  readonly knownHosts: string;
  readonly identityFile: string;
  /** Paths of the host's private keys, by type. */
  readonly hostKeys: Readonly<Record<'ed25519' | 'rsa', string>>;
  /** Options of a node for a file on the server. */
  options(file: string): Record<string, unknown>;
  start(): Promise<void>;
  /** Kills the server and the processes of its connections. */
  kill(): Promise<void>;
  /** Stops (or continues) the server and all its connections where they are. */
  freeze(frozen: boolean): void;
}

function makeKey(file: string, type: string): void {
  execFileSync('ssh-keygen', ['-q', '-t', type, '-N', '', '-f', file]);
}

/** Waits until something listens on the port of loopback. */
export async function waitForPort(port: number): Promise<void> {
  for (let tries = 0; tries < 400; tries++) {
    const isThere = await new Promise<boolean>((resolve) => {
      const socket = connect(port, '127.0.0.1', () => {
        socket.destroy();
        resolve(true);
      });
      socket.on('error', () => resolve(false));
    });
    if (isThere) return;
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  throw new Error(`nothing listens on port ${port}`);
}

/** The process and all below it; those that have gone meanwhile are left out. */
function family(pid: number): number[] {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim();
    return [pid, ...(children === '' ? [] : children.split(' ').flatMap((child) => family(Number(child))))];
  } catch {
    return [];
  }
}

/** Sends a signal to the process and all below it. */
export function signalFamily(pid: number, signal: NodeJS.Signals): void {
  for (const member of family(pid)) {
    try {
      process.kill(member, signal);
    } catch {
      // It has gone by itself.
    }
  }
}

export async function startSshd(dir: string): Promise<SshServer> {
  const port = await freePort();
  const file = (name: string): string => path.join(dir, name);
  for (const type of ['ed25519', 'rsa']) makeKey(file(`host_${type}`), type);
  makeKey(file('identity'), 'ed25519');
  const lines = ['ed25519', 'rsa'].map((type) =>
    readFileSync(file(`host_${type}.pub`), 'utf8')
      .split(' ')
      .slice(0, 2),
  );
  writeFileSync(file('known_hosts'), lines.map((key) => `[127.0.0.1]:${port} ${key.join(' ')}\n`).join(''));
  writeFileSync(
    file('sshd_config'),
    [
      `Port ${port}`,
      'ListenAddress 127.0.0.1',
      `HostKey ${file('host_ed25519')}`,
      `HostKey ${file('host_rsa')}`,
      'PidFile none',
      `AuthorizedKeysFile ${file('identity.pub')}`,
      'StrictModes no',
      'UsePAM no',
      'PermitRootLogin yes',
      'PasswordAuthentication no',
      'Subsystem sftp internal-sftp',
      '',
    ].join('\n'),
  );
  if (process.getuid?.() === 0) mkdirSync('/run/sshd', { recursive: true });
  let server: ChildProcess | null = null;
  const all = (signal: NodeJS.Signals): void => signalFamily(server!.pid!, signal);
  const result: SshServer = {
    port,
    knownHosts: file('known_hosts'),
    identityFile: file('identity'),
    hostKeys: { ed25519: file('host_ed25519'), rsa: file('host_rsa') },
    options: (name) => ({
      driver: 'ssh',
      server: { host: '127.0.0.1', port: String(port) },
      path: file(name),
      'known-hosts': file('known_hosts'),
      'identity-file': file('identity'),
      'retry-delay': 20,
    }),
    async start() {
      server = spawn('/usr/sbin/sshd', ['-D', '-f', file('sshd_config'), '-E', file('log')], {
        stdio: 'ignore',
      });
      await waitForPort(port);
    },
    async kill() {
      if (server === null || server.exitCode !== null || server.signalCode !== null) return;
      const gone = new Promise((resolve) => server!.once('exit', resolve));
      all('SIGKILL');
      await gone;
    },
    freeze: (frozen) => all(frozen ? 'SIGSTOP' : 'SIGCONT'),
  };
  await result.start();
  return result;
}
