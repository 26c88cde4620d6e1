/**
 * Modes of operation made of single blocks, for ciphers or modes that OpenSSL does not have: CBC, CTR, LRW. XTS is in
 * contexts.ts.
 *
 * Each gets contexts of the cipher without chaining (ECB) and works on units that are whole blocks. LRW: Liskov, Rivest,
 * Wagner, "Tweakable Block Ciphers", with the field and byte order of IEEE P1619 drafts, as dm-crypt has it.
 */

import { type CipherContext, IV_BYTES } from '../../aio/evp.ts';

const NO_IV = Buffer.alloc(IV_BYTES);

function xorRange(buf: Buffer, at: number, mask: Buffer, from: number, bytes: number): void {
  for (let i = 0; i < bytes; i++) buf[at + i] = buf[at + i]! ^ mask[from + i]!;
}

/** Cipher block chaining. `ecb` is for the same direction. */
export function cbcContext(ecb: CipherContext, blockBytes: number, encrypt: boolean): CipherContext {
  const encryptUnit = (buf: Buffer, start: number, unitBytes: number, ivs: Buffer, iv: number): void => {
    xorRange(buf, start, ivs, iv, blockBytes);
    ecb.run(buf, start, blockBytes, NO_IV, 1);
    for (let at = start + blockBytes; at < start + unitBytes; at += blockBytes) {
      xorRange(buf, at, buf, at - blockBytes, blockBytes);
      ecb.run(buf, at, blockBytes, NO_IV, 1);
    }
  };
  const decryptUnit = (buf: Buffer, start: number, unitBytes: number, ivs: Buffer, iv: number): void => {
    const before = Buffer.from(buf.subarray(start, start + unitBytes - blockBytes));
    ecb.run(buf, start, unitBytes, NO_IV, 1);
    xorRange(buf, start, ivs, iv, blockBytes);
    xorRange(buf, start + blockBytes, before, 0, before.length);
  };
  const unit = encrypt ? encryptUnit : decryptUnit;
  return {
    run: (buf, start, unitBytes, ivs, count) => {
      for (let i = 0; i < count; i++) unit(buf, start + unitBytes * i, unitBytes, ivs, IV_BYTES * i);
    },
    free: () => ecb.free(),
  };
}

/** Counter mode: the vector is a big-endian counter. `ecb` encrypts, whatever the direction. */
export function ctrContext(ecb: CipherContext, blockBytes: number): CipherContext {
  return {
    run: (buf, start, unitBytes, ivs, count) => {
      for (let i = 0; i < count; i++) {
        const stream = Buffer.alloc(unitBytes);
        ivs.copy(stream, 0, IV_BYTES * i, IV_BYTES * i + blockBytes);
        for (let at = blockBytes; at < unitBytes; at += blockBytes) {
          stream.copyWithin(at, at - blockBytes, at);
          for (let byte = at + blockBytes - 1; byte >= at; byte--) {
            stream[byte] = (stream[byte]! + 1) & 255;
            if (stream[byte] !== 0) break;
          }
        }
        ecb.run(stream, 0, unitBytes, NO_IV, 1);
        xorRange(buf, start + unitBytes * i, stream, 0, unitBytes);
      }
    },
    free: () => ecb.free(),
  };
}

const LRW_BLOCK_BYTES = 16;
/** x^128 = x^7 + x^2 + x + 1. */
const LRW_REDUCTION = 0x87n;
const LRW_MASK = (1n << 128n) - 1n;

function toInteger(bytes: Buffer, at: number): bigint {
  return (bytes.readBigUInt64BE(at) << 64n) | bytes.readBigUInt64BE(at + 8);
}

/** `key` times x^i for every i of a block's bits. */
function powersOf(key: bigint): bigint[] {
  const powers: bigint[] = [];
  for (let value = key, i = 0; i < 128; i++) {
    powers.push(value);
    const carry = value >> 127n;
    value = ((value << 1n) & LRW_MASK) ^ (carry * LRW_REDUCTION);
  }
  return powers;
}

/** The product of the key behind `powers` and `index`. */
function product(powers: readonly bigint[], index: bigint): bigint {
  let sum = 0n;
  for (let bit = 0, left = index; left !== 0n; bit++, left >>= 1n) {
    if ((left & 1n) !== 0n) sum ^= powers[bit]!;
  }
  return sum;
}

/** LRW with `tweakKey` of 16 bytes; the vector is the big-endian index of the unit's first block. */
export function lrwContext(ecb: CipherContext, tweakKey: Buffer): CipherContext {
  const powers = powersOf(toInteger(tweakKey, 0));
  return {
    run: (buf, start, unitBytes, ivs, count) => {
      const tweaks = Buffer.alloc(unitBytes);
      for (let i = 0; i < count; i++) {
        let index = toInteger(ivs, IV_BYTES * i);
        let tweak = product(powers, index);
        for (let at = 0; at < unitBytes; at += LRW_BLOCK_BYTES) {
          tweaks.writeBigUInt64BE(tweak >> 64n, at);
          tweaks.writeBigUInt64BE(tweak & 0xffffffffffffffffn, at + 8);
          const next = (index + 1n) & LRW_MASK;
          tweak ^= product(powers, index ^ next);
          index = next;
        }
        const from = start + unitBytes * i;
        xorRange(buf, from, tweaks, 0, unitBytes);
        ecb.run(buf, from, unitBytes, NO_IV, 1);
        xorRange(buf, from, tweaks, 0, unitBytes);
      }
    },
    free: () => ecb.free(),
  };
}
