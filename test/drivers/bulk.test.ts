/** Encryption of large requests leaves the event loop to others, however many requests there are. */

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { type BlockCipher, type CipherSpec, openBlockCipher } from '../../src/drivers/crypto/block-cipher.ts';
import { decryptBulk, encryptBulk } from '../../src/drivers/crypto/bulk.ts';

const MIB = 1024 * 1024;

const SERPENT: CipherSpec = { algorithm: 'serpent-256', mode: 'xts', ivgen: 'plain64', ivgenHash: null };

test('in turns: requests are encrypted one after the other, and the loop turns meanwhile', async () => {
  const cipher = openBlockCipher(SERPENT, randomBytes(64));
  let turns = 0;
  let ended = false;
  /** Which request each piece was of, and in which turn. */
  const pieces: { readonly request: number; readonly turn: number }[] = [];
  const watched: BlockCipher = {
    ...cipher,
    threadBytes: Number.POSITIVE_INFINITY,
    encrypt(buf, offset) {
      pieces.push({ request: Math.floor(offset / MIB), turn: turns });
      cipher.encrypt(buf, offset);
    },
  };
  const count = (): void => {
    turns++;
    if (!ended) setImmediate(count);
  };
  setImmediate(count);
  const plain = randomBytes(MIB);
  const copies = Array.from({ length: 4 }, () => Buffer.from(plain));
  await Promise.all(copies.map((each, i) => encryptBulk(watched, each, i * MIB)));
  ended = true;
  expect(pieces.map(({ request }) => request)).toEqual(
    pieces.map((_, i) => Math.floor((i * copies.length) / pieces.length)),
  );
  // No turn has pieces of two requests, and the slow cipher needs many turns for one.
  for (const [i, piece] of pieces.entries())
    if (i > 0 && piece.request !== pieces[i - 1]!.request) expect(piece.turn).not.toBe(pieces[i - 1]!.turn);
  expect(new Set(pieces.map(({ turn }) => turn)).size).toBeGreaterThan(2 * copies.length);
  await Promise.all(copies.map((each, i) => decryptBulk({ ...cipher, threadBytes: MIB * 2 }, each, i * MIB)));
  for (const each of copies) expect(each.equals(plain)).toBe(true);
  cipher.close();
}, 60_000);

/** A cipher that counts what this thread does itself. */
function counting(cipher: BlockCipher): { readonly cipher: BlockCipher; bytesHere: number } {
  const counted = { bytesHere: 0 };
  const count =
    (step: (buf: Buffer, offset: number) => void) =>
    (buf: Buffer, offset: number): void => {
      counted.bytesHere += buf.length;
      step(buf, offset);
    };
  const watched = { ...cipher, encrypt: count(cipher.encrypt), decrypt: count(cipher.decrypt) };
  return Object.assign(counted, { cipher: watched });
}

/** Uses a cipher until another thread does what is asked for: threads need a moment to start. */
async function untilElsewhere(counted: ReturnType<typeof counting>): Promise<void> {
  for (;;) {
    counted.bytesHere = 0;
    await encryptBulk(counted.cipher, Buffer.alloc(MIB), 0);
    if (counted.bytesHere === 0) return;
    await delay(20);
  }
}

const CIPHERS: Readonly<Record<string, readonly [CipherSpec, number]>> = {
  'aes-256-xts': [{ algorithm: 'aes-256', mode: 'xts', ivgen: 'plain64', ivgenHash: null }, 64],
  'aes-128-cbc, essiv': [{ algorithm: 'aes-128', mode: 'cbc', ivgen: 'essiv', ivgenHash: 'sha256' }, 16],
  'aes-192-xts, sectors of 4 KiB from another number on': [
    { algorithm: 'aes-192', mode: 'xts', ivgen: 'plain64', ivgenHash: null, sectorBytes: 4096, ivTweak: 77 },
    48,
  ],
  'cast5-128-cbc': [{ algorithm: 'cast5-128', mode: 'cbc', ivgen: 'plain64', ivgenHash: null }, 16],
  'serpent-256-xts': [SERPENT, 64],
  'twofish-128-ctr': [{ algorithm: 'twofish-128', mode: 'ctr', ivgen: 'plain', ivgenHash: null }, 16],
};

test.each(Object.entries(CIPHERS))(
  'elsewhere: %s does large requests in other threads, many at a time, with the same result',
  async (_, [spec, keyBytes]) => {
    const key = randomBytes(keyBytes);
    const here = openBlockCipher(spec, key);
    const counted = counting(openBlockCipher(spec, key));
    await untilElsewhere(counted);
    counted.bytesHere = 0;
    const plain = Array.from({ length: 8 }, () => randomBytes(MIB));
    const packed = plain.map((each) => Buffer.from(each));
    await Promise.all(packed.map((each, i) => encryptBulk(counted.cipher, each, (i + 2 ** 20) * MIB)));
    for (const [i, each] of plain.entries()) {
      const expected = Buffer.from(each);
      here.encrypt(expected, (i + 2 ** 20) * MIB);
      expect(packed[i]!.equals(expected)).toBe(true);
    }
    await Promise.all(packed.map((each, i) => decryptBulk(counted.cipher, each, (i + 2 ** 20) * MIB)));
    for (const [i, each] of plain.entries()) expect(packed[i]!.equals(each)).toBe(true);
    // All of it: this thread's turns were everybody else's.
    expect(counted.bytesHere).toBe(0);
    counted.cipher.close();
    here.close();
  },
  60_000,
);

test('small requests stay where they are', async () => {
  const [spec, keyBytes] = CIPHERS['aes-256-xts']!;
  const counted = counting(openBlockCipher(spec, randomBytes(keyBytes)));
  await untilElsewhere(counted);
  counted.bytesHere = 0;
  await encryptBulk(counted.cipher, Buffer.alloc(65536), 0);
  expect(counted.bytesHere).toBe(65536);
  counted.cipher.close();
});

test('a process may end at any moment of its threads', () => {
  const script = path.join(import.meta.dirname, '../../dist/src/drivers/crypto');
  const program = (endAfterMs: number): string => `
    import { openBlockCipher } from '${script}/block-cipher.js';
    import { encryptBulk } from '${script}/bulk.js';
    const spec = { algorithm: 'aes-256', mode: 'xts', ivgen: 'plain64', ivgenHash: null };
    const work = async () => { for (;;) {
      const cipher = openBlockCipher(spec, Buffer.alloc(64).fill(7, 0, 32));
      for (let i = 0; i < 20; i++) await encryptBulk(cipher, Buffer.alloc(${MIB}), 0);
      cipher.close();
    } };
    for (let i = 0; i < 3; i++) void work();
    setTimeout(() => process.exit(7), ${endAfterMs});`;
  for (let endAfterMs = 0; endAfterMs < 120; endAfterMs += 24) {
    const { status, stderr } = spawnSync(
      process.execPath,
      ['--input-type=module', '-e', program(endAfterMs)],
      {
        encoding: 'utf8',
      },
    );
    expect({ status, stderr }).toEqual({ status: 7, stderr: '' });
  }
}, 120_000);

test('where the system gives no threads, requests are encrypted all the same', () => {
  const crypto = path.join(import.meta.dirname, '../../dist/src/drivers/crypto');
  const program = `
    import { createRequire, syncBuiltinESMExports } from 'node:module';
    let asked = 0;
    const refuse = function () { asked++; throw Object.assign(new Error('EAGAIN'), { code: 'ERR_WORKER_INIT_FAILED' }); };
    createRequire(import.meta.url)('node:worker_threads').Worker = refuse;
    syncBuiltinESMExports();
    const { openBlockCipher } = await import('${crypto}/block-cipher.js');
    const { decryptBulk, encryptBulk } = await import('${crypto}/bulk.js');
    const spec = { algorithm: 'aes-256', mode: 'xts', ivgen: 'plain64', ivgenHash: null };
    const cipher = openBlockCipher(spec, Buffer.alloc(64).fill(7, 0, 32));
    const data = Buffer.alloc(${MIB}, 5);
    await encryptBulk(cipher, data, 0);
    const changed = !data.equals(Buffer.alloc(${MIB}, 5));
    await decryptBulk(cipher, data, 0);
    cipher.close();
    console.log(asked, changed, data.equals(Buffer.alloc(${MIB}, 5)));`;
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', program], {
    encoding: 'utf8',
  });
  expect({ stdout, stderr }).toEqual({ stdout: '1 true true\n', stderr: '' });
});
