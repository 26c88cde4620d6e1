/** A web server (nginx) of one's own on loopback, plain or with TLS, that serves a folder in ranges. */

import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { freePort } from './ports.ts';
import { signalFamily, waitForPort } from './sshd.ts';
import { makeCertificate } from './vsftpd.ts';

export interface WebServer {
  readonly port: number;
  /** Folder of the files that are served; under /secret/ too, to "ali" with the password "open sesame". */
  readonly root: string;
  start(): Promise<void>;
  /** Kills the server and its workers. */
  kill(): Promise<void>;
  /** Stops (or continues) them where they are. */
  freeze(frozen: boolean): void;
}

export async function startNginx(dir: string, tls: boolean): Promise<WebServer> {
  const port = await freePort();
  const at = (name: string): string => path.join(dir, name);
  const root = at('www');
  mkdirSync(root);
  const certificate = tls ? makeCertificate(dir) : null;
  const keys = certificate && `ssl_certificate ${certificate.cert}; ssl_certificate_key ${certificate.key};`;
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map(
    (name) => `${name}_temp_path ${at(name)};`,
  );
  writeFileSync(at('users'), 'ali:{PLAIN}open sesame\n');
  const secret = `location /secret/ { alias ${root}/; auth_basic x; auth_basic_user_file ${at('users')}; }`;
  const user = process.getuid?.() === 0 ? 'user root;' : '';
  writeFileSync(
    at('conf'),
    `${user} daemon off; worker_processes 1; pid ${at('pid')}; error_log ${at('log')};
events { worker_connections 256; }
http { access_log off; ${temporary.join(' ')}
server { listen 127.0.0.1:${port}${tls ? ' ssl' : ''}; ${keys ?? ''} root ${root}; ${secret} } }`,
  );
  let server: ChildProcess;
  const result: WebServer = {
    port,
    root,
    async start() {
      server = spawn('/usr/sbin/nginx', ['-c', at('conf'), '-p', dir, '-e', at('log')], { stdio: 'ignore' });
      await waitForPort(port);
    },
    async kill() {
      if (server.exitCode !== null || server.signalCode !== null) return;
      const gone = new Promise((resolve) => server.once('exit', resolve));
      signalFamily(server.pid!, 'SIGKILL');
      await gone;
    },
    freeze: (frozen) => signalFamily(server.pid!, frozen ? 'SIGSTOP' : 'SIGCONT'),
  };
  await result.start();
  return result;
}
