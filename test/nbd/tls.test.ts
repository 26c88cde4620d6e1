/** STARTTLS with pre-shared keys, with node's own TLS as the client. Certificates: test/peers/nbd-tls.test.ts. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { connect } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Command, Option } from '../../src/nbd/protocol/messages.ts';
import { createTlsPsk } from '../../src/objects/tls-creds-psk.ts';
import { FakeBackend } from './fake-backend.ts';
import { infoPayload, RawClient } from './raw-client.ts';
import { makeExport, serve, type TestServer } from './serve.ts';

const MIB = 1024 * 1024;
const KEY = Buffer.alloc(32, 0x5c);

describe.each(['io_uring', 'threads'] as const)('on %s', (kind) => {
  let dir: string;
  let server: TestServer;

  beforeAll(async () => {
    dir = mkdtempSync(path.join(tmpdir(), 'qbt-'));
    writeFileSync(path.join(dir, 'keys.psk'), `alice:${KEY.toString('hex')}\n`);
    const { credentials } = createTlsPsk({
      'qom-type': 'tls-creds-psk',
      id: 'tls0',
      dir,
      endpoint: 'server',
    });
    const backend = new FakeBackend(4 * MIB);
    backend.bytes.fill(0x77);
    const tls = { credentials, authzId: null, findAuthorizer: () => null };
    server = await serve([makeExport(backend, 4 * MIB)], { tls, handshakeMaxSeconds: 1 }, kind);
  });
  afterAll(async () => {
    await server.stop();
    rmSync(dir, { recursive: true, force: true });
  });

  /** A client that did STARTTLS; null when the TLS handshake failed. */
  async function encrypt(plain: RawClient, identity: string, key: Buffer): Promise<RawClient | null> {
    plain.socket.removeAllListeners('data');
    const session = connect({
      socket: plain.socket,
      ciphers: 'PSK:TLS_AES_128_GCM_SHA256',
      pskCallback: () => ({ identity, psk: key }),
      checkServerIdentity: () => undefined,
    });
    return new Promise((resolve) => {
      session.once('secureConnect', () => resolve(new RawClient(session)));
      session.once('error', () => resolve(null));
      session.once('close', () => resolve(null));
    });
  }

  async function startTls(identity: string, key: Buffer): Promise<RawClient | null> {
    const plain = await server.connect();
    await plain.greet();
    expect(await plain.ask(Option.STARTTLS)).toEqual(['STARTTLS ACK']);
    return encrypt(plain, identity, key);
  }

  test('nothing but STARTTLS before TLS', async () => {
    const client = await server.connect();
    await client.greet();
    expect(await client.ask(Option.LIST)).toEqual([
      'LIST ERR_TLS_REQD "Option 0x3 not permitted before TLS"',
    ]);
    expect(await client.ask(Option.GO, infoPayload('disk'))).toEqual([
      'GO ERR_TLS_REQD "Option 0x7 not permitted before TLS"',
    ]);
    client.option(Option.EXPORT_NAME, Buffer.from('disk'));
    expect(await client.end()).toBe('EOF');
  });

  test('a client with the key is served', async () => {
    const client = await startTls('alice', KEY);
    if (client === null) throw new Error('no TLS');
    expect(await client.ask(Option.STARTTLS)).toEqual(['STARTTLS ERR_INVALID "TLS already enabled"']);
    expect(await client.ask(Option.STRUCTURED_REPLY)).toEqual(['STRUCTURED_REPLY ACK']);
    expect((await client.ask(Option.GO, infoPayload('disk'))).at(-1)).toBe('GO ACK');
    const data = Buffer.alloc(MIB, 0x33);
    expect(await client.transact({ type: Command.WRITE, length: BigInt(MIB) }, data)).toBe('simple #1 ok');
    expect(await client.transact({ type: Command.READ, length: BigInt(2 * MIB) })).toMatch(
      /OFFSET_DATA @0 \[33\*/,
    );
    for (let i = 0; i < 64; i++)
      client.request({ type: Command.READ, flags: 4, length: 65536n, cookie: BigInt(i) });
    const replies = new Set<string>();
    for (let i = 0; i < 64; i++) replies.add(await client.reply());
    expect(replies.size).toBe(64);
    client.request({ type: Command.DISC });
    expect(await client.end()).toBe('EOF');
  });

  test('a client with another key, or another name, is not', async () => {
    expect(await startTls('alice', Buffer.alloc(32, 1))).toBeNull();
    expect(await startTls('mallory', KEY)).toBeNull();
  });

  test('what was sent in the clear after STARTTLS is not taken for what was sent in secret', async () => {
    const plain = await server.connect();
    await plain.greet();
    plain.option(Option.STARTTLS).option(Option.LIST);
    expect(await plain.optionReply()).toBe('STARTTLS ACK');
    expect(await plain.end()).not.toBe('silence');
  });

  test('a client that never starts the TLS handshake is disconnected in time', async () => {
    const plain = await server.connect();
    await plain.greet();
    await plain.ask(Option.STARTTLS);
    expect(await plain.end(3000)).toBe('EOF');
    await expect.poll(() => server.server.connectionCount).toBe(0);
  });
});
