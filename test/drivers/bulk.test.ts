/** Encryption of large requests leaves the event loop to others, however many requests there are. */

import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import { type BlockCipher, openBlockCipher } from '../../src/drivers/crypto/block-cipher.ts';
import { decryptBulk, encryptBulk } from '../../src/drivers/crypto/bulk.ts';

const MIB = 1024 * 1024;

test('requests are encrypted one after the other, and the loop turns meanwhile', async () => {
  const cipher = openBlockCipher(
    { algorithm: 'serpent-256', mode: 'xts', ivgen: 'plain64', ivgenHash: null },
    randomBytes(64),
  );
  let turns = 0;
  let ended = false;
  /** Which request each piece was of, and in which turn. */
  const pieces: { readonly request: number; readonly turn: number }[] = [];
  const watched: BlockCipher = {
    ...cipher,
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
  await Promise.all(copies.map((each, i) => decryptBulk(cipher, each, i * MIB)));
  for (const each of copies) expect(each.equals(plain)).toBe(true);
  cipher.close();
}, 60_000);
