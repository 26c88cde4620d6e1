/** An iSCSI target (tgtd, in user space) of a test's own on loopback, with units over files. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import path from 'node:path';
import { freePort } from './ports.ts';
import { waitForPort } from './sshd.ts';

interface Account {
  readonly user: string;
  readonly password: string;
}

export interface IscsiServer {
  readonly port: number;
  /** Adds a target with the file as its unit 1; with an account only that one may log in. */
  addTarget(name: string, disk: string, account?: Account): void;
  /** Starts it again, with the targets it had. */
  start(): Promise<void>;
  /** Stops (or continues) the server where it is. */
  freeze(frozen: boolean): void;
  kill(): Promise<void>;
}

export async function startTgt(dir: string): Promise<IscsiServer> {
  const port = await freePort();
  const env = { ...process.env, TGT_IPC_SOCKET: path.join(dir, 'ipc') };
  const args = ['-f', '--iscsi', `portal=127.0.0.1:${port}`];
  const admin = (op: string, mode: string, ...more: string[]): void => {
    const words = ['--lld', 'iscsi', '--op', op, '--mode', mode, ...more];
    execFileSync('tgtadm', words, { env, stdio: ['ignore', 'ignore', 'pipe'] });
  };
  const targets: (readonly [string, string, Account | undefined])[] = [];
  let server: ChildProcess;

  function tell(index: number): void {
    const [name, disk, account] = targets[index]!;
    const target = ['--tid', String(index + 1)];
    const unit = [...target, '--lun', '1'];
    admin('new', 'target', ...target, '-T', name);
    admin('new', 'logicalunit', ...unit, '-b', disk);
    admin('update', 'logicalunit', ...unit, '--params', 'thin_provisioning=1');
    if (account !== undefined) {
      admin('new', 'account', '--user', account.user, '--password', account.password);
      admin('bind', 'account', ...target, '--user', account.user);
    }
    // From here on initiators get in.
    admin('bind', 'target', ...target, '-I', 'ALL');
  }

  const result: IscsiServer = {
    port,
    addTarget(name, disk, account) {
      targets.push([name, disk, account]);
      tell(targets.length - 1);
    },
    async start() {
      server = spawn('/usr/sbin/tgtd', args, { env, stdio: 'ignore' });
      await waitForPort(port);
      for (const index of targets.keys()) tell(index);
    },
    freeze: (frozen) => void server.kill(frozen ? 'SIGSTOP' : 'SIGCONT'),
    async kill() {
      if (server.exitCode !== null || server.signalCode !== null) return;
      const gone = new Promise((resolve) => server.once('exit', resolve));
      server.kill('SIGKILL');
      await gone;
      for (const end of ['.0', '.0.lock']) rmSync(`${env.TGT_IPC_SOCKET}${end}`, { force: true });
    },
  };
  await result.start();
  return result;
}
