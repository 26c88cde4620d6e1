/** An S3 server of a test's own (s3rver), on loopback, with a bucket `images` in a scratch folder. */

import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';

export interface S3Server {
  readonly port: number;
  /** Options of a node for an object on the server; the secret `key` is `S3RVER`. */
  options(key: string): Record<string, unknown>;
  close(): Promise<void>;
}

interface S3rver {
  run(): Promise<AddressInfo>;
  close(): Promise<void>;
}

export async function startS3(directory: string): Promise<S3Server> {
  const Server = createRequire(import.meta.url)('s3rver') as new (options: object) => S3rver;
  const server = new Server({
    address: '127.0.0.1',
    port: 0,
    silent: true,
    directory,
    configureBuckets: [{ name: 'images' }],
  });
  const { port } = await server.run();
  return {
    port,
    options: (key) => ({
      driver: 's3',
      bucket: 'images',
      key,
      endpoint: `http://127.0.0.1:${port}`,
      'access-key-id': 'S3RVER',
      'secret-access-key': 'key',
      'retry-delay': 10,
    }),
    close: () => server.close(),
  };
}
