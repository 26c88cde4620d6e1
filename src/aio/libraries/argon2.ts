/**
 * Argon2 (RFC 9106), the memory-hard key derivation: by libargon2 on libuv's thread pool where the host has it (whoever
 * has cryptsetup does), else by @noble/hashes in pieces within this thread, which takes some ten times as long.
 */

import { argon2iAsync, argon2idAsync } from '@noble/hashes/argon2.js';
import koffi from 'koffi';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { addressOf } from '../ffi.ts';

export interface Argon2Parameters {
  readonly variant: 'argon2i' | 'argon2id';
  /** Passes over the memory. */
  readonly passes: number;
  readonly memoryKib: number;
  readonly lanes: number;
}

type Derive = (
  parameters: Argon2Parameters,
  passphrase: Buffer,
  salt: Buffer,
  bytes: number,
) => Promise<Buffer>;

/** Turns of @noble/hashes, in milliseconds. */
const TURN_MS = 2;

let native: Derive | null | undefined;

function bindNative(): Derive | null {
  try {
    const lib = koffi.load('libargon2.so.1');
    const memory = ['uintptr_t', 'size_t'];
    const signature = ['uint32', 'uint32', 'uint32', ...memory, ...memory, ...memory];
    const calls = {
      argon2i: lib.func('argon2i_hash_raw', 'int', signature),
      argon2id: lib.func('argon2id_hash_raw', 'int', signature),
    };
    return ({ variant, passes, memoryKib, lanes }, passphrase, salt, bytes) => {
      const [from, seed, key] = [passphrase, salt, Buffer.alloc(bytes)].map((data) => {
        const copy = Buffer.allocUnsafeSlow(Math.max(1, data.length));
        data.copy(copy);
        return copy;
      }) as [Buffer, Buffer, Buffer];
      return new Promise((resolve, reject) => {
        const done = (error: Error | null, status: number): void => {
          from.fill(0);
          seed.fill(0);
          if (error === null && status === 0) resolve(key);
          else reject(new BlockError(`Argon2 failed: ${error?.message ?? status}`, { errno: E.ENOMEM }));
        };
        const buffers = [
          addressOf(from),
          passphrase.length,
          addressOf(seed),
          salt.length,
          addressOf(key),
          bytes,
        ];
        calls[variant].async(passes, memoryKib, lanes, ...buffers, done);
      });
    };
  } catch {
    return null; // Not installed.
  }
}

const portable: Derive = async ({ variant, passes, memoryKib, lanes }, passphrase, salt, bytes) => {
  const derive = variant === 'argon2i' ? argon2iAsync : argon2idAsync;
  return Buffer.from(
    await derive(passphrase, salt, {
      t: passes,
      m: memoryKib,
      p: lanes,
      dkLen: bytes,
      asyncTick: TURN_MS,
      maxmem: 2 ** 32 - 1,
    }),
  );
};

/** `bytes` bytes of key. The parameters have been checked against limits by the caller. */
export function deriveArgon2(
  parameters: Argon2Parameters,
  passphrase: Buffer,
  salt: Buffer,
  bytes: number,
): Promise<Buffer> {
  if (native === undefined) native = bindNative();
  return (native ?? portable)(parameters, passphrase, salt, bytes);
}

/** Without the library. For the tests. */
export const derivePortably = portable;
