/**
 * Key derivation (PBKDF2 with HMAC) on libuv's thread pool, or in a process of its own when it takes long, and how many iterations make it take a wanted time on
 * this host.
 */

import { createHash, pbkdf2 } from 'node:crypto';
import { promisify } from 'node:util';
import type { QCryptoHashAlgorithm } from '../../../schema/generated/types.ts';
import { deriveInChild } from '../../aio/host/long-derivation.ts';
import { E } from '../../errors/errno.ts';
import { errnoError } from '../../errors/error.ts';

/** What node:crypto takes. New headers may ask for so much. */
export const MAX_ITERATIONS = 2 ** 31 - 1;

/**
 * What a header may ask for: minutes on any host. Nobody waits longer for his disk; a header that says more was made to
 * keep the reader busy.
 */
export const PLAUSIBLE_ITERATIONS = 2 ** 28;

const FIRST_ITERATIONS = 1 << 14;

/** A measurement this long is exact enough: the clock, start-up and the thread pool's queue do not matter any more. */
const ENOUGH_MS = 200;

/** Iterations above which a derivation takes longer than a second or so, and is one that can be ended. */
const LONG_ITERATIONS = 2 ** 20;

/** PBKDF2: `bytes` bytes of key. `iterations` is 1..MAX_ITERATIONS. */
export function deriveKey(
  hash: QCryptoHashAlgorithm,
  passphrase: Buffer,
  salt: Buffer,
  iterations: number,
  bytes: number,
): Promise<Buffer> {
  // Each block of the hash's length takes all iterations.
  const blocks = Math.ceil(bytes / createHash(hash).digest().length);
  if (iterations * blocks > LONG_ITERATIONS)
    return deriveInChild({ hash, passphrase, salt, iterations, bytes });
  return promisify(pbkdf2)(passphrase, salt, iterations, bytes, hash);
}

/** Iterations per second for keys of `bytes` bytes. Takes less than a second. */
export async function measureIterations(hash: QCryptoHashAlgorithm, bytes: number): Promise<number> {
  const passphrase = Buffer.from('passphrase');
  const salt = Buffer.alloc(32);
  for (let iterations = FIRST_ITERATIONS; ; ) {
    const start = performance.now();
    await deriveKey(hash, passphrase, salt, iterations, bytes);
    const elapsedMs = Math.max(performance.now() - start, 0.1);
    if (elapsedMs >= ENOUGH_MS) return Math.ceil((iterations * 1000) / elapsedMs);
    const factor = Math.min(Math.max((1.2 * ENOUGH_MS) / elapsedMs, 2), 16);
    iterations = Math.min(Math.ceil(iterations * factor), MAX_ITERATIONS);
  }
}

/**
 * Iterations that take `timeMs` / `divisor` milliseconds, at least `minimum`. Errors as the original's: times that
 * need more iterations than a header can hold. A negative time counts as its unsigned 64-bit value.
 */
export function iterationsFor(perSecond: number, timeMs: number, divisor: number, minimum: number): number {
  const time = BigInt.asUintN(64, BigInt(timeMs));
  const rate = BigInt(perSecond);
  if (rate * time >= 1n << 64n) {
    throw errnoError(`PBKDF iterations ${perSecond} too large to scale`, E.ERANGE);
  }
  const iterations = (rate * time) / BigInt(divisor) / 1000n;
  if (iterations > BigInt(MAX_ITERATIONS)) {
    throw errnoError(`PBKDF iterations ${iterations} larger than ${MAX_ITERATIONS}`, E.ERANGE);
  }
  return Math.max(Number(iterations), minimum);
}
