/**
 * Encryption of as much as a request holds, without holding up the event loop: what is large goes to another thread.
 * Where there is none, and for what is too small to send away, in pieces: one request of a cipher at a time, and others
 * get their turn when a few milliseconds are over.
 *
 * Nobody may look at the buffer meanwhile, and its place must be settled before: other requests run until the end.
 */

import { createTurns, nextTurn } from '../../aio/host/turns.ts';
import { openTool, runOnThread } from '../../aio/workers/pool.ts';
import type { BlockCipher } from './block-cipher.ts';
import type { CipherDescription, CipherJob } from './cipher-thread.ts';

/** The threads' entry, as scripts/bundle.mjs calls it. */
const ENTRY = 'cipher-thread';

const PIECE_BYTES = 16 * 1024;

/** Time after which others get their turn. */
const MAX_TURN_MS = 2;

/** Has another thread do it; null when there is none just now. */
function onThread({ elsewhere }: BlockCipher, buf: Buffer, job: CipherJob): Promise<void> | null {
  const { spec, key } = elsewhere;
  elsewhere.tool ??= openTool({ spec, key } satisfies CipherDescription);
  return runOnThread(ENTRY, elsewhere.tool, buf, job);
}

async function inPieces(
  cipher: BlockCipher,
  step: (piece: Buffer, offset: number) => void,
  buf: Buffer,
  offset: number,
): Promise<void> {
  await cipher.bulk.with('bulk', async () => {
    const turns = createTurns(MAX_TURN_MS);
    for (let at = 0; at < buf.length; at += PIECE_BYTES) {
      await turns.next();
      step(buf.subarray(at, at + PIECE_BYTES), offset + at);
    }
    // Whoever is next begins in a turn of its own.
    await nextTurn();
  });
}

/** BlockCipher.decrypt of any amount. Rejects with EIO when a thread dies. */
export async function decryptBulk(cipher: BlockCipher, buf: Buffer, offset: number): Promise<void> {
  if (buf.length <= cipher.inTurnBytes) cipher.decrypt(buf, offset);
  else
    await ((buf.length >= cipher.threadBytes ? onThread(cipher, buf, { encrypt: false, offset }) : null) ??
      inPieces(cipher, cipher.decrypt, buf, offset));
}

/** BlockCipher.encrypt of any amount. Rejects with EIO when a thread dies. */
export async function encryptBulk(cipher: BlockCipher, buf: Buffer, offset: number): Promise<void> {
  if (buf.length <= cipher.inTurnBytes) cipher.encrypt(buf, offset);
  else
    await ((buf.length >= cipher.threadBytes ? onThread(cipher, buf, { encrypt: true, offset }) : null) ??
      inPieces(cipher, cipher.encrypt, buf, offset));
}
