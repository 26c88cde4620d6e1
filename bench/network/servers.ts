/** Servers of bench:network, on loopback and on the clients' CPU, each reached directly and through a proxy that is late. */

import { execFileSync, spawnSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import path from 'node:path';
import { startCeph } from '../../test/peers/network/servers/ceph.ts';
import { CLIENT_CPU } from '../fio.ts';
import { type Argv, type Background, pinned, sleep, startUntil } from '../measure.ts';

export const DELAY_MS = 5;

/** What is to be ended. */
export type Running = Pick<Background, 'stop'>;

/** Ports of a protocol's server: direct, and behind the delay. */
export interface Way {
  readonly direct: number;
  /** 0: there is no such way. */
  readonly delayed: number;
  /** What is to be done before this port is used. */
  readonly use?: (port: number) => Promise<void>;
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0));
    });
  });
}

/** Starts a server and a proxy before it. */
export async function withDelay(
  folder: string,
  running: Running[],
  start: (port: number) => Promise<Background>,
): Promise<Way> {
  const direct = await freePort();
  running.push(await start(direct));
  const delayed = await freePort();
  const pid = path.join(folder, `proxy-${delayed}.pid`);
  const proxy = path.resolve(import.meta.dirname, '../../../bench/network/delay-proxy.py');
  const argv: Argv = ['python3', proxy, String(delayed), String(direct), String(DELAY_MS), pid];
  running.push(await startUntil(pinned(CLIENT_CPU, argv), pid));
  return { direct, delayed };
}

export function nginx(folder: string, tls: boolean) {
  return (port: number): Promise<Background> => {
    const own = path.join(folder, `nginx-${port}`);
    mkdirSync(own);
    const listen = tls
      ? `listen 127.0.0.1:${port} ssl; ssl_certificate ${folder}/cert.pem; ssl_certificate_key ${folder}/key.pem;`
      : `listen 127.0.0.1:${port};`;
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
      .map((name) => `${name}_temp_path ${own}/${name};`)
      .join(' ');
    writeFileSync(
      `${own}/conf`,
      `${process.getuid?.() === 0 ? 'user root;' : ''} daemon off; worker_processes 1; pid ${own}/pid; error_log ${own}/log;
events { worker_connections 256; }
http { access_log off; sendfile on; keepalive_requests 1000000; ${temporary} server { ${listen} root ${folder}; } }`,
    );
    return startUntil(
      pinned(CLIENT_CPU, ['nginx', '-c', `${own}/conf`, '-p', own, '-e', `${own}/log`]),
      `${own}/pid`,
    );
  };
}

export function sshd(folder: string) {
  return (port: number): Promise<Background> => {
    for (const name of ['host', 'user'])
      execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path.join(folder, name)]);
    if (process.getuid?.() === 0) mkdirSync('/run/sshd', { recursive: true });
    writeFileSync(
      `${folder}/sshd_config`,
      `Port ${port}\nListenAddress 127.0.0.1\nHostKey ${folder}/host\nPidFile ${folder}/sshd.pid\n` +
        `AuthorizedKeysFile ${folder}/user.pub\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n`,
    );
    const argv: Argv = ['/usr/sbin/sshd', '-D', '-f', `${folder}/sshd_config`, '-E', `${folder}/sshd.log`];
    return startUntil(pinned(CLIENT_CPU, argv), `${folder}/sshd.pid`);
  };
}

const CEPH_MEMORY_BYTES = 4 * 2 ** 30;

export const ISCSI_TARGET = 'iqn.2026-01.bench:disk';

/** tgtd with `disk` as unit 1 of the target. */
export function tgtd(folder: string, disk: string) {
  return async (port: number): Promise<Background> => {
    const env = { ...process.env, TGT_IPC_SOCKET: path.join(folder, 'tgt') };
    process.env.TGT_IPC_SOCKET = env.TGT_IPC_SOCKET;
    const argv: Argv = ['/usr/sbin/tgtd', '-f', '--iscsi', `portal=127.0.0.1:${port}`];
    const server = await startUntil(pinned(CLIENT_CPU, argv), `${env.TGT_IPC_SOCKET}.0`);
    const admin = (op: string, mode: string, ...more: string[]): void => {
      execFileSync('tgtadm', ['--lld', 'iscsi', '--op', op, '--mode', mode, '--tid', '1', ...more], { env });
    };
    await sleep(300);
    admin('new', 'target', '-T', ISCSI_TARGET);
    admin('new', 'logicalunit', '--lun', '1', '-b', disk);
    admin('bind', 'target', '-I', 'ALL');
    return server;
  };
}

const NFS_PROGRAM = 100_003;
const NFS_VERSION = 3;
const PMAP_SET = 1;
const PMAP_UNSET = 2;
const TCP = 6;

/** Tells the port mapper that NFS is on this port (RFC 1833, version 2 of the protocol; loopback only). */
export async function registerNfs(port: number): Promise<void> {
  const socket = createSocket('udp4');
  // What ganesha has registered is the super-user's: only he takes it out again.
  spawnSync('rpcinfo', ['-d', String(NFS_PROGRAM), String(NFS_VERSION)]);
  const call = (procedure: number): Promise<void> => {
    const words = [procedure, 0, 2, 100_000, 2, procedure, 0, 0, 0, 0, NFS_PROGRAM, NFS_VERSION, TCP, port];
    const message = Buffer.alloc(words.length * 4);
    for (const [i, word] of words.entries()) message.writeUInt32BE(word, i * 4);
    return new Promise((resolve, reject) => {
      socket.once('message', (answer) =>
        answer.readUInt32BE(answer.length - 4) === 1 || procedure === PMAP_UNSET
          ? resolve()
          : reject(new Error('the port mapper refuses: is it one of this benchmark (rpcbind -i)?')),
      );
      socket.send(message, 111, '127.0.0.1');
    });
  };
  try {
    await call(PMAP_UNSET);
    await call(PMAP_SET);
  } finally {
    socket.close();
  }
}

/** nfs-ganesha with the folder FOLDER/share, and a port mapper that lets the port be changed. */
export function ganesha(folder: string, running: Running[]) {
  return async (port: number): Promise<Background> => {
    if (spawnSync('rpcinfo', ['-p', '127.0.0.1']).status === 0)
      throw new Error('a port mapper runs already: end rpcbind first');
    running.push(await startUntil(['/usr/sbin/rpcbind', '-i', '-f'], '/run/rpcbind.sock'));
    const lines = [
      'NFS_CORE_PARAM {',
      `NFS_Port = ${port}; MNT_Port = ${await freePort()}; Protocols = 3; Bind_addr = 127.0.0.1;`,
      'Enable_NLM = false; Enable_RQUOTA = false; mount_path_pseudo = false; }',
      `NFSV4 { RecoveryRoot = ${folder}; Graceless = true; RecoveryBackend = fs; }`,
      'NFS_KRB5 { Active_krb5 = false; }',
      `EXPORT { Export_Id = 1; Path = ${folder}/share; Pseudo = /share; Protocols = 3;`,
      'Access_Type = RW; Squash = None; SecType = sys; FSAL { Name = VFS; } }',
    ];
    writeFileSync(`${folder}/ganesha.conf`, lines.join('\n'));
    const pid = `${folder}/ganesha.pid`;
    const argv: Argv = [
      ...(['ganesha.nfsd', '-F', '-L', `${folder}/ganesha.log`] as const),
      ...['-f', `${folder}/ganesha.conf`, '-p', pid],
    ];
    const server = await startUntil(pinned(CLIENT_CPU, argv), pid);
    await sleep(2000);
    return server;
  };
}

/** A one-machine Ceph with an image `disk` of the file's content; its configuration file. */
export async function ceph(folder: string, running: Running[], disk: string): Promise<string> {
  const { conf, run, kill } = await startCeph(folder, {
    memoryBytes: CEPH_MEMORY_BYTES,
    prefix: ['taskset', '-c', String(CLIENT_CPU)],
  });
  running.push({ stop: async () => kill() });
  run('rbd', 'import', disk, 'disk');
  return conf;
}
