/**
 * The header of LUKS version 1 volumes (LUKS on-disk format specification 1.2.3): reading with all checks, writing,
 * and what is said of it in image information.
 *
 * Bytes are big-endian. Layout, in bytes from the start:
 *
 *     0  magic, version            104  payload offset (sectors)      164  iterations of the digest
 *     8  cipher name               108  key length                    168  UUID
 *    40  cipher mode               112  digest of the key             208  8 key slots of 48 bytes:
 *    72  hash name                 132  salt of the digest                 state, iterations, salt, offset, stripes
 *
 * The header is whatever somebody wrote into a file: nothing here allocates or loops by its numbers. Here: the header
 * as a record. Not here: passphrases and keys (luks.ts).
 */

import type { QCryptoBlockInfoLUKS, QCryptoHashAlgorithm } from '../../../schema/generated/types.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import {
  cipherKeyBytes,
  essivCipher,
  luksCipher,
  luksHash,
  luksIvGenerator,
  luksMode,
} from './algorithms.ts';
import { type CipherSpec, SECTOR_BYTES } from './block-cipher.ts';

export const LUKS_HEADER_BYTES = 592;
export const SLOT_COUNT = 8;
export const STRIPES = 4000;
export const SALT_BYTES = 32;
export const DIGEST_BYTES = 20;

/** Key material of new volumes begins after this, and each slot's is aligned to it (LUKS_ALIGN_KEYSLOTS). */
const ALIGN_SECTORS = 8;
/** The header itself; cryptsetup 1.0 put the key material right behind it. */
const HEADER_SECTORS = Math.ceil(LUKS_HEADER_BYTES / SECTOR_BYTES);

const MAGIC = Buffer.from('LUKS\xba\xbe', 'latin1');
const VERSION = 1;
const SLOT_ACTIVE = 0x00ac71f3;
const SLOT_INACTIVE = 0x0000dead;
const SLOTS_AT = 208;
const SLOT_BYTES = 48;
const NAME_BYTES = 32;
const UUID_BYTES = 40;

export interface LuksSlot {
  readonly active: boolean;
  readonly iterations: number;
  readonly salt: Buffer;
  /** Where the key material is. */
  readonly offsetBytes: number;
}

export interface LuksHeader {
  readonly cipherName: string;
  /** Mode and vector generator: `xts-plain64`, `cbc-essiv:sha256`. */
  readonly cipherMode: string;
  readonly hashName: string;
  readonly payloadOffsetBytes: number;
  readonly keyBytes: number;
  readonly digest: Buffer;
  readonly digestSalt: Buffer;
  readonly digestIterations: number;
  readonly uuid: string;
  readonly slots: readonly LuksSlot[];
}

/** What a header's names mean. */
export interface LuksAlgorithms {
  readonly spec: CipherSpec;
  readonly hash: QCryptoHashAlgorithm;
}

const invalid = (message: string): BlockError => new BlockError(message, { errno: E.EINVAL });

/** Bytes of a slot's key material; ciphers work on whole sectors. */
export function materialBytes(keyBytes: number): number {
  return Math.ceil((keyBytes * STRIPES) / SECTOR_BYTES) * SECTOR_BYTES;
}

function slotSectors(keyBytes: number): number {
  return Math.ceil(materialBytes(keyBytes) / SECTOR_BYTES / ALIGN_SECTORS) * ALIGN_SECTORS;
}

/** Where slot `index` of a new volume is, in bytes; index 8 is where the payload begins. */
export function slotOffsetBytes(keyBytes: number, index: number): number {
  return (ALIGN_SECTORS + index * slotSectors(keyBytes)) * SECTOR_BYTES;
}

function readText(header: Buffer, offset: number, bytes: number): string {
  const field = header.subarray(offset, offset + bytes);
  const end = field.indexOf(0);
  return field.toString('utf8', 0, end < 0 ? bytes : end);
}

function readName(header: Buffer, offset: number, what: string): string {
  if (!header.subarray(offset, offset + NAME_BYTES).includes(0)) {
    throw invalid(`LUKS header ${what} is not NUL terminated`);
  }
  return readText(header, offset, NAME_BYTES);
}

/** The slots, each checked by itself and against those after it. */
function readSlots(header: Buffer, keyBytes: number, payloadSectors: number, detached: boolean): LuksSlot[] {
  const slotAt = (index: number): number => SLOTS_AT + SLOT_BYTES * index;
  const startOf = (index: number): number => header.readUInt32BE(slotAt(index) + 40);
  const sectors = materialBytes(keyBytes) / SECTOR_BYTES;
  const slots: LuksSlot[] = [];
  for (let i = 0; i < SLOT_COUNT; i++) {
    const at = slotAt(i);
    const state = header.readUInt32BE(at);
    const iterations = header.readUInt32BE(at + 4);
    const start = startOf(i);
    const stripes = header.readInt32BE(at + 44);
    if (stripes !== STRIPES) throw invalid(`Keyslot ${i} is corrupted (stripes ${stripes} != ${STRIPES})`);
    if (state !== SLOT_ACTIVE && state !== SLOT_INACTIVE) {
      throw invalid(`Keyslot ${i} state (active/disable) is corrupted`);
    }
    if (state === SLOT_ACTIVE && iterations === 0) throw invalid(`Keyslot ${i} iteration count is zero`);
    if (start < HEADER_SECTORS) throw invalid(`Keyslot ${i} is overlapping with the LUKS header`);
    if (!detached && start + sectors > payloadSectors) {
      throw invalid(`Keyslot ${i} is overlapping with the encrypted payload`);
    }
    for (let other = i + 1; other < SLOT_COUNT; other++) {
      if (Math.abs(startOf(other) - start) < sectors) {
        throw invalid(`Keyslots ${i} and ${other} are overlapping in the header`);
      }
    }
    slots.push({
      active: state === SLOT_ACTIVE,
      iterations,
      salt: Buffer.from(header.subarray(at + 8, at + 8 + SALT_BYTES)),
      offsetBytes: start * SECTOR_BYTES,
    });
  }
  return slots;
}

/**
 * Reads and checks a header of LUKS_HEADER_BYTES bytes; the texts are the original's. `detached`: the content is
 * elsewhere, and its offset counts from there.
 */
export function parseLuksHeader(header: Buffer, detached = false): LuksHeader {
  if (!header.subarray(0, MAGIC.length).equals(MAGIC)) throw invalid('Volume is not in LUKS format');
  const version = header.readUInt16BE(6);
  if (version !== VERSION) {
    throw new BlockError(`LUKS version ${version} is not supported`, { errno: E.ENOTSUP });
  }
  const cipherName = readName(header, 8, 'cipher name');
  const cipherMode = readName(header, 40, 'cipher mode');
  const hashName = readName(header, 72, 'hash spec');
  const payloadSectors = header.readUInt32BE(104);
  const keyBytes = header.readUInt32BE(108);
  const digestIterations = header.readUInt32BE(164);
  if (!detached && payloadSectors < HEADER_SECTORS)
    throw invalid('LUKS payload is overlapping with the header');
  if (digestIterations === 0) throw invalid('LUKS key iteration count is zero');
  return {
    cipherName,
    cipherMode,
    hashName,
    payloadOffsetBytes: payloadSectors * SECTOR_BYTES,
    keyBytes,
    digest: Buffer.from(header.subarray(112, 112 + DIGEST_BYTES)),
    digestSalt: Buffer.from(header.subarray(132, 132 + SALT_BYTES)),
    digestIterations,
    uuid: readText(header, 168, UUID_BYTES),
    slots: readSlots(header, keyBytes, payloadSectors, detached),
  };
}

/** What a name such as "aes-xts-plain64" or "twofish-cbc-essiv:sha256" means with keys of a length. */
export function resolveCipher(name: string, keyBytes: number): CipherSpec {
  const dash = name.indexOf('-');
  return cipherSpec(name.slice(0, Math.max(dash, 0)), name.slice(dash + 1), keyBytes);
}

/** `checkHash`: called where the original looks at the header's hash, so that the first error is the same. */
function cipherSpec(
  cipherName: string,
  cipherMode: string,
  keyBytes: number,
  checkHash?: () => void,
): CipherSpec {
  // What cryptsetup called it before 1.0; and what has no use for vectors.
  const modeName = cipherMode === 'plain' ? 'cbc-plain' : cipherMode === 'ecb' ? 'ecb-plain' : cipherMode;
  const dash = modeName.indexOf('-');
  if (dash < 0) throw invalid(`Unexpected cipher mode string format '${modeName}'`);
  const generator = modeName.slice(dash + 1);
  const colon = generator.indexOf(':');
  const generatorHash = colon < 0 ? null : luksHash(generator.slice(colon + 1));
  const mode = luksMode(modeName.slice(0, dash));
  const algorithm = luksCipher(cipherName, cipherKeyBytes(mode, keyBytes));
  checkHash?.();
  const ivgen = luksIvGenerator(colon < 0 ? generator : generator.slice(0, colon));
  if (ivgen !== 'essiv') return { algorithm, mode, ivgen, ivgenHash: null };
  if (generatorHash === null) throw invalid('Missing IV generator hash specification');
  essivCipher(algorithm, generatorHash);
  return { algorithm, mode, ivgen, ivgenHash: generatorHash };
}

/** What the header's names mean; whether this host can compute it is found out when it is used. */
export function resolveLuksAlgorithms(header: LuksHeader): LuksAlgorithms {
  const { cipherName, cipherMode, hashName, keyBytes } = header;
  const spec = cipherSpec(cipherName, cipherMode, keyBytes, () => void luksHash(hashName));
  return { spec, hash: luksHash(hashName) };
}

/** The header's bytes. */
export function encodeLuksHeader(header: LuksHeader): Buffer {
  const bytes = Buffer.alloc(LUKS_HEADER_BYTES);
  MAGIC.copy(bytes);
  bytes.writeUInt16BE(VERSION, 6);
  bytes.write(header.cipherName, 8, NAME_BYTES - 1);
  bytes.write(header.cipherMode, 40, NAME_BYTES - 1);
  bytes.write(header.hashName, 72, NAME_BYTES - 1);
  bytes.writeUInt32BE(header.payloadOffsetBytes / SECTOR_BYTES, 104);
  bytes.writeUInt32BE(header.keyBytes, 108);
  header.digest.copy(bytes, 112);
  header.digestSalt.copy(bytes, 132);
  bytes.writeUInt32BE(header.digestIterations, 164);
  bytes.write(header.uuid, 168, UUID_BYTES - 1);
  header.slots.forEach((slot, i) => {
    const at = SLOTS_AT + SLOT_BYTES * i;
    bytes.writeUInt32BE(slot.active ? SLOT_ACTIVE : SLOT_INACTIVE, at);
    bytes.writeUInt32BE(slot.iterations, at + 4);
    slot.salt.copy(bytes, at + 8);
    bytes.writeUInt32BE(slot.offsetBytes / SECTOR_BYTES, at + 40);
    bytes.writeUInt32BE(STRIPES, at + 44);
  });
  return bytes;
}

/** Image information. `detached`: the content is elsewhere. */
export function luksInfo(header: LuksHeader, detached = false): QCryptoBlockInfoLUKS {
  const { spec, hash } = resolveLuksAlgorithms(header);
  return {
    'ivgen-alg': spec.ivgen,
    'hash-alg': hash,
    'cipher-alg': spec.algorithm,
    uuid: header.uuid,
    ...(spec.ivgenHash !== null && { 'ivgen-hash-alg': spec.ivgenHash }),
    'cipher-mode': spec.mode,
    slots: header.slots.map(({ active, iterations, offsetBytes }) => ({
      active,
      ...(active && { iters: iterations }),
      'key-offset': offsetBytes,
      ...(active && { stripes: STRIPES }),
    })),
    'payload-offset': header.payloadOffsetBytes,
    'detached-header': detached,
    'master-key-iters': header.digestIterations,
  };
}
