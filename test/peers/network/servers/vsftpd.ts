/** An FTP server of a test's own (vsftpd), on loopback, for anonymous users, with its files in a scratch folder. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { freePort } from './ports.ts';
import { signalFamily, waitForPort } from './sshd.ts';

export interface FtpServer {
  readonly port: number;
  /** Folder of the files that are served. */
  readonly root: string;
  start(): Promise<void>;
  kill(): Promise<void>;
  /** Stops (or continues) the server and all its connections where they are. */
  freeze(frozen: boolean): void;
}

/** A certificate for localhost and 127.0.0.1 with its key, as PEM files. */
export function makeCertificate(dir: string): { readonly cert: string; readonly key: string } {
  const cert = path.join(dir, 'cert.pem');
  const key = path.join(dir, 'key.pem');
  const args = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  const names = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1'];
  execFileSync('openssl', [...args, '-keyout', key, '-out', cert, '-days', '2', ...names], {
    stdio: 'ignore',
  });
  return { cert, key };
}

export async function startVsftpd(dir: string, tls: boolean): Promise<FtpServer> {
  const port = await freePort();
  const root = path.join(dir, tls ? 'ftps' : 'ftp');
  const empty = path.join(dir, 'empty');
  const config = path.join(dir, `vsftpd-${port}.conf`);
  mkdirSync(root, { mode: 0o755 });
  mkdirSync(empty, { recursive: true });
  // The server's own user has to get at it.
  chmodSync(dir, 0o755);
  const certificate = tls ? makeCertificate(dir) : null;
  writeFileSync(
    config,
    [
      'listen=YES',
      'listen_address=127.0.0.1',
      `listen_port=${port}`,
      'background=NO',
      'anonymous_enable=YES',
      `anon_root=${root}`,
      'local_enable=NO',
      `secure_chroot_dir=${empty}`,
      'xferlog_enable=NO',
      'seccomp_sandbox=NO',
      ...(certificate === null
        ? []
        : [
            'ssl_enable=YES',
            'implicit_ssl=YES',
            'allow_anon_ssl=YES',
            `rsa_cert_file=${certificate.cert}`,
            `rsa_private_key_file=${certificate.key}`,
            'require_ssl_reuse=NO',
          ]),
      '',
    ].join('\n'),
  );
  let server: ChildProcess | null = null;
  const result: FtpServer = {
    port,
    root,
    async start() {
      server = spawn('/usr/sbin/vsftpd', [config], { stdio: 'ignore' });
      await waitForPort(port);
    },
    async kill() {
      if (server === null || server.exitCode !== null || server.signalCode !== null) return;
      const gone = new Promise((resolve) => server!.once('exit', resolve));
      signalFamily(server.pid!, 'SIGKILL');
      await gone;
    },
    freeze: (frozen) => signalFamily(server!.pid!, frozen ? 'SIGSTOP' : 'SIGCONT'),
  };
  await result.start();
  return result;
}
