/** An S3 server of a test's own (s3rver), a process on loopback, with a bucket `images` in a scratch folder. */

import { type ChildProcess, spawn } from 'node:child_process';
import { createRequire } from 'node:module';
import { AwsClient } from 'aws4fetch';
import { freePort } from './ports.ts';
import { waitForPort } from './sshd.ts';

export interface S3Server {
  readonly port: number;
  /** Options of a node for an object on the server; the secret `key` is `S3RVER`. */
  options(key: string): Record<string, unknown>;
  /** Puts an object there. */
  put(key: string, content: Buffer): Promise<void>;
  start(): Promise<void>;
  /** Stops (or continues) the server where it is. */
  freeze(frozen: boolean): void;
  close(): Promise<void>;
}

/** Run by node with the server's module, its port and its folder. */
const PROGRAM = `
const Server = require(process.argv[1]);
new Server({
  address: '127.0.0.1', port: Number(process.argv[2]), silent: true, directory: process.argv[3],
  configureBuckets: [{ name: 'images' }],
}).run();`;

export async function startS3(directory: string): Promise<S3Server> {
  const port = await freePort();
  const module = createRequire(import.meta.url).resolve('s3rver');
  const endpoint = `http://127.0.0.1:${port}`;
  const client = new AwsClient({ accessKeyId: 'S3RVER', secretAccessKey: 'S3RVER', service: 's3' });
  let server: ChildProcess;
  const result: S3Server = {
    port,
    options: (key) => ({
      driver: 's3',
      bucket: 'images',
      key,
      endpoint,
      'access-key-id': 'S3RVER',
      'secret-access-key': 'key',
      'retry-delay': 10,
    }),
    async put(key, content) {
      const { status } = await client.fetch(`${endpoint}/images/${key}`, { method: 'PUT', body: content });
      if (status !== 200) throw new Error(`the S3 server answers ${status}`);
    },
    async start() {
      const args = ['-e', PROGRAM, module, String(port), directory];
      server = spawn(process.execPath, args, { stdio: 'ignore' });
      await waitForPort(port);
    },
    freeze: (frozen) => void server.kill(frozen ? 'SIGSTOP' : 'SIGCONT'),
    async close() {
      if (server.exitCode !== null || server.signalCode !== null) return;
      const gone = new Promise((resolve) => server.once('exit', resolve));
      server.kill('SIGKILL');
      await gone;
    },
  };
  await result.start();
  return result;
}
