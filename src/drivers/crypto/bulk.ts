/**
 * Encryption of as much as a request holds, without holding up the event loop: in pieces, one request of a cipher at a
 * time, and others get their turn when a few milliseconds are over.
 */

import { setImmediate as nextTurn } from 'node:timers/promises';
import type { BlockCipher } from './block-cipher.ts';

const PIECE_BYTES = 16 * 1024;

/** Time after which others get their turn. */
const MAX_TURN_MS = 2;

async function inPieces(
  cipher: BlockCipher,
  step: (piece: Buffer, offset: number) => void,
  buf: Buffer,
  offset: number,
): Promise<void> {
  if (buf.length <= PIECE_BYTES) {
    step(buf, offset);
    return;
  }
  await cipher.bulk.with('bulk', async () => {
    let turnEndsMs = performance.now() + MAX_TURN_MS;
    for (let at = 0; at < buf.length; at += PIECE_BYTES) {
      if (performance.now() > turnEndsMs) {
        await nextTurn();
        turnEndsMs = performance.now() + MAX_TURN_MS;
      }
      step(buf.subarray(at, at + PIECE_BYTES), offset + at);
    }
    // Whoever is next begins in a turn of its own.
    await nextTurn();
  });
}

/** BlockCipher.decrypt of any amount. */
export async function decryptBulk(cipher: BlockCipher, buf: Buffer, offset: number): Promise<void> {
  await inPieces(cipher, cipher.decrypt, buf, offset);
}

/** BlockCipher.encrypt of any amount. */
export async function encryptBulk(cipher: BlockCipher, buf: Buffer, offset: number): Promise<void> {
  await inPieces(cipher, cipher.encrypt, buf, offset);
}
