/**
 * Opening volumes of any version of LUKS. Version 1 is luks.ts; of version 2 everything but the keys can be had: content
 * is read and written, its key slots are cryptsetup's to change.
 */

import { timingSafeEqual } from 'node:crypto';
import type { QCryptoBlockInfoLUKS } from '../../../../schema/generated/types.ts';
import { deriveArgon2 } from '../../../aio/libraries/argon2.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { mergeKey } from '../af-split.ts';
import { requireCipher, requireHash } from '../algorithms.ts';
import { type BlockCipher, openBlockCipher, SECTOR_BYTES } from '../block-cipher.ts';
import { openLuks, readLuksInfo } from '../luks.ts';
import { resolveCipher } from '../luks-header.ts';
import type { HeaderReader } from '../luks-slots.ts';
import { deriveKey } from '../pbkdf.ts';
import { hasLuks2Header, type Keyslot, type Luks2Header, readLuks2Header } from './header.ts';

/** What is known of a volume without its key. */
export interface LuksFacts {
  readonly info: QCryptoBlockInfoLUKS;
  /** Where the encrypted content begins, and its length; null: up to the end. */
  readonly payloadOffset: number;
  readonly payloadBytes: number | null;
  readonly sectorBytes: number;
}

export interface OpenVolume extends LuksFacts {
  readonly cipher: BlockCipher;
}

/** Facts for image information. `detached`: the content is not behind the header. */
export async function readLuksInfoAny(read: HeaderReader, detached: boolean): Promise<LuksFacts> {
  if (await hasLuks2Header(read)) return factsOf(await readLuks2Header(read), detached);
  const info = await readLuksInfo(read, detached);
  return { info, payloadOffset: info['payload-offset'], payloadBytes: null, sectorBytes: SECTOR_BYTES };
}

/** Opens a volume with a passphrase of any bytes. */
export async function openLuksAny(
  read: HeaderReader,
  passphrase: Buffer,
  detached: boolean,
): Promise<OpenVolume> {
  if (await hasLuks2Header(read)) return openLuks2(read, passphrase, detached);
  const volume = await openLuks(read, passphrase, detached);
  return { ...volume, payloadBytes: null, sectorBytes: SECTOR_BYTES };
}

function factsOf(header: Luks2Header, detached: boolean): LuksFacts {
  const { segment, digest, keyslots } = header;
  // The length of the key decides which cipher it is.
  const keyBytes = keyslots.find(({ id }) => digest.keyslots.includes(id))?.keyBytes ?? 64;
  const spec = resolveCipher(segment.encryption, keyBytes);
  return {
    info: {
      'ivgen-alg': spec.ivgen,
      'hash-alg': digest.hash,
      'cipher-alg': spec.algorithm,
      uuid: header.uuid,
      ...(spec.ivgenHash !== null && { 'ivgen-hash-alg': spec.ivgenHash }),
      'cipher-mode': spec.mode,
      slots: keyslots.map(({ kdf, areaOffset, stripes }) => ({
        active: true,
        iters: kdf.type === 'pbkdf2' ? kdf.iterations : kdf.passes,
        'key-offset': areaOffset,
        stripes,
      })),
      'payload-offset': segment.offset,
      'detached-header': detached,
      'master-key-iters': digest.iterations,
    },
    payloadOffset: segment.offset,
    payloadBytes: segment.bytes,
    sectorBytes: segment.sectorBytes,
  };
}

function deriveSlotKey(slot: Keyslot, passphrase: Buffer): Promise<Buffer> {
  const { kdf, salt, areaKeyBytes } = slot;
  if (kdf.type === 'pbkdf2') {
    requireHash(kdf.hash);
    return deriveKey(kdf.hash, passphrase, salt, kdf.iterations, areaKeyBytes);
  }
  return deriveArgon2({ ...kdf, variant: kdf.type }, passphrase, salt, areaKeyBytes);
}

/** The key in a slot, if `passphrase` is the slot's; null when it is not. */
async function unlock(
  slot: Keyslot,
  digest: Luks2Header['digest'],
  passphrase: Buffer,
  read: HeaderReader,
): Promise<Buffer | null> {
  const spec = resolveCipher(slot.encryption, slot.areaKeyBytes);
  requireCipher(spec.algorithm, spec.mode);
  requireHash(slot.afHash);
  requireHash(digest.hash);
  const slotKey = await deriveSlotKey(slot, passphrase);
  const bytes = Math.ceil((slot.keyBytes * slot.stripes) / SECTOR_BYTES) * SECTOR_BYTES;
  const material = Buffer.from(await read(slot.areaOffset, bytes));
  const cipher = openBlockCipher(spec, slotKey);
  try {
    cipher.decrypt(material, 0);
  } finally {
    cipher.close();
  }
  const key = await mergeKey(slot.afHash, material, slot.keyBytes, slot.stripes);
  const found = await deriveKey(digest.hash, key, digest.salt, digest.iterations, digest.value.length);
  return timingSafeEqual(found, digest.value) ? key : null;
}

async function openLuks2(read: HeaderReader, passphrase: Buffer, detached: boolean): Promise<OpenVolume> {
  const header = await readLuks2Header(read);
  const { segment, digest } = header;
  for (const slot of header.keyslots) {
    if (!digest.keyslots.includes(slot.id)) continue;
    const key = await unlock(slot, digest, passphrase, read);
    if (key === null) continue;
    const { sectorBytes, ivTweak } = segment;
    const spec = { ...resolveCipher(segment.encryption, key.length), sectorBytes, ivTweak };
    return { ...factsOf(header, detached), cipher: openBlockCipher(spec, key) };
  }
  for (const [id, error] of header.unusable) if (digest.keyslots.includes(id)) throw error;
  throw new BlockError('Invalid password, cannot unlock any keyslot', { errno: E.EPERM });
}
