/** An NFS server (nfs-ganesha, version 3) of a test's own on loopback, exporting a folder. */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import path from 'node:path';
import { freePort } from './ports.ts';
import { waitForPort } from './sshd.ts';

export interface NfsServer {
  /** The folder, of the same path on the server. */
  readonly share: string;
  start(): Promise<void>;
  /** Resolves when the server has gone. */
  kill(): Promise<void>;
  /** Stops (or continues) the server where it is. */
  freeze(frozen: boolean): void;
  /** The end of everything, the port mapper with it if it is this test's. */
  end(): void;
}

/**
 * Clients find the server by the host's one port mapper: there is one at a time, and other tests wait for their turn. The
 * name is given back when the process ends, however it does.
 */
async function takeTurn(): Promise<() => void> {
  for (;;) {
    const turn = createServer();
    const isMine = await new Promise<boolean>((resolve) => {
      turn.once('error', () => resolve(false));
      turn.listen('\0qblockd-test-nfs', () => resolve(true));
    });
    if (isMine) {
      turn.unref();
      return () => void turn.close();
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

export async function startGanesha(dir: string): Promise<NfsServer> {
  const leave = await takeTurn();
  const share = path.join(dir, 'share');
  mkdirSync(share);
  let mapper: ChildProcess | null = null;
  if (spawnSync('rpcinfo', ['-p', '127.0.0.1']).status !== 0) {
    mapper = spawn('/usr/sbin/rpcbind', ['-f'], { stdio: 'ignore' });
    await waitForPort(111);
  }
  const port = await freePort();
  const mountPort = await freePort();
  const lines = [
    'NFS_CORE_PARAM {',
    `NFS_Port = ${port}; MNT_Port = ${mountPort}; Protocols = 3; Bind_addr = 127.0.0.1;`,
    'Enable_NLM = false; Enable_RQUOTA = false; mount_path_pseudo = false; }',
    `NFSV4 { RecoveryRoot = ${dir}; Graceless = true; RecoveryBackend = fs; }`,
    'NFS_KRB5 { Active_krb5 = false; }',
    `EXPORT { Export_Id = 1; Path = ${share}; Pseudo = /share; Protocols = 3;`,
    'Access_Type = RW; Squash = None; SecType = sys; FSAL { Name = VFS; } }',
  ];
  writeFileSync(path.join(dir, 'conf'), lines.join('\n'));
  let server: ChildProcess;
  const started: NfsServer = {
    share,
    async start() {
      const file = (name: string): string => path.join(dir, name);
      const args = ['-F', '-L', file('log'), '-f', file('conf'), '-p', file('pid')];
      server = spawn('ganesha.nfsd', args, { stdio: 'ignore' });
      await waitForPort(port);
    },
    async kill() {
      const gone = new Promise((resolve) => server.once('exit', resolve));
      server.kill('SIGKILL');
      await gone;
    },
    freeze: (frozen) => void server.kill(frozen ? 'SIGSTOP' : 'SIGCONT'),
    end() {
      server.kill('SIGKILL');
      mapper?.kill('SIGKILL');
      leave();
    },
  };
  try {
    await started.start();
  } catch (error) {
    started.end();
    throw error;
  }
  return started;
}
