/** An iSCSI target (tgtd, in user space) of a test's own on loopback, with units over files. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import path from 'node:path';
import { freePort } from './ports.ts';
import { waitForPort } from './sshd.ts';

export interface IscsiServer {
  readonly port: number;
  /** Adds a target with the file as its unit 1; with an account only that one may log in. */
  addTarget(name: string, disk: string, account?: { readonly user: string; readonly password: string }): void;
  /** Stops (or continues) the server where it is. */
  freeze(frozen: boolean): void;
  kill(): void;
}

export async function startTgt(dir: string): Promise<IscsiServer> {
  const port = await freePort();
  const env = { ...process.env, TGT_IPC_SOCKET: path.join(dir, 'ipc') };
  const args = ['-f', '--iscsi', `portal=127.0.0.1:${port}`];
  const server: ChildProcess = spawn('/usr/sbin/tgtd', args, { env, stdio: 'ignore' });
  await waitForPort(port);
  const admin = (op: string, mode: string, ...more: string[]): void => {
    const words = ['--lld', 'iscsi', '--op', op, '--mode', mode, ...more];
    execFileSync('tgtadm', words, { env, stdio: ['ignore', 'ignore', 'pipe'] });
  };
  let targets = 0;
  return {
    port,
    addTarget(name, disk, account) {
      const target = ['--tid', String(++targets)];
      const unit = [...target, '--lun', '1'];
      admin('new', 'target', ...target, '-T', name);
      admin('new', 'logicalunit', ...unit, '-b', disk);
      admin('update', 'logicalunit', ...unit, '--params', 'thin_provisioning=1');
      admin('bind', 'target', ...target, '-I', 'ALL');
      if (account === undefined) return;
      admin('new', 'account', '--user', account.user, '--password', account.password);
      admin('bind', 'account', ...target, '--user', account.user);
    },
    freeze: (frozen) => void server.kill(frozen ? 'SIGSTOP' : 'SIGCONT'),
    kill: () => void server.kill('SIGKILL'),
  };
}
