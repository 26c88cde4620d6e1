/**
 * The header of LUKS version 2 volumes (LUKS2 On-Disk Format Specification 1.1): reading with all checks.
 *
 * Two copies, each a binary header of 4096 bytes and an area of JSON text behind it; the one that is whole and newer
 * counts. Bytes are big-endian. Layout of the binary header, in bytes:
 *
 *     0  magic, version        24  label          168  UUID                  256  offset of this header
 *     8  size with JSON area   72  checksum name  208  subsystem             448  checksum of header and area
 *    16  sequence number      104  salt
 *
 * The header is whatever somebody wrote into a file: sizes are checked before anything is read by them. Here: from bytes
 * to a record. Not here: passphrases and keys (keyslots.ts).
 */

import { createHash } from 'node:crypto';
import type { QCryptoHashAlgorithm } from '../../../../schema/generated/types.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { luksHash } from '../algorithms.ts';
import { SECTOR_BYTES } from '../block-cipher.ts';
import type { HeaderReader } from '../luks-slots.ts';
import { PLAUSIBLE_ITERATIONS } from '../pbkdf.ts';
import { at, type Json, list, objectAt, type Place, positive, sizeText, text } from './json.ts';

export const BINARY_BYTES = 4096;
const MAGICS = ['LUKS\xba\xbe', 'SKUL\xba\xbe'] as const;
/** Sizes that a header may have, which are the places the second one may be at. */
const HEADER_SIZES = [0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000];
const CHECKSUM_AT = 448;
const CHECKSUM_BYTES = 64;
const MAX_SLOTS = 32;
const MAX_KEY_BYTES = 512;
const MAX_MATERIAL_BYTES = 16 * 1024 * 1024;
const MAX_SECTOR_BYTES = 4096;
/** Argon2 may ask for no more than this: the most that cryptsetup makes unless told otherwise. */
const MAX_ARGON2_MEMORY_KIB = 1024 * 1024;
const MAX_ARGON2_LANES = 4;
const MAX_ARGON2_PASSES = 2 ** 20;

export type Kdf =
  | { readonly type: 'pbkdf2'; readonly hash: QCryptoHashAlgorithm; readonly iterations: number }
  | {
      readonly type: 'argon2i' | 'argon2id';
      readonly passes: number;
      readonly memoryKib: number;
      readonly lanes: number;
    };

export interface Keyslot {
  readonly id: number;
  readonly keyBytes: number;
  readonly kdf: Kdf;
  readonly salt: Buffer;
  readonly afHash: QCryptoHashAlgorithm;
  readonly stripes: number;
  /** Cipher of the key material, as "aes-xts-plain64", and its key's length. */
  readonly encryption: string;
  readonly areaKeyBytes: number;
  readonly areaOffset: number;
  readonly areaBytes: number;
}

export interface Luks2Header {
  readonly uuid: string;
  readonly keyslots: readonly Keyslot[];
  /** Slots that cannot be opened here, and why: the others can all the same. */
  readonly unusable: ReadonlyMap<number, BlockError>;
  /** The segment of the content. */
  readonly segment: {
    readonly offset: number;
    /** Null: up to the end of the device. */
    readonly bytes: number | null;
    readonly ivTweak: number;
    readonly encryption: string;
    readonly sectorBytes: number;
  };
  /** What tells the key of that segment. */
  readonly digest: {
    readonly hash: QCryptoHashAlgorithm;
    readonly iterations: number;
    readonly salt: Buffer;
    readonly value: Buffer;
    readonly keyslots: readonly number[];
  };
}

function invalid(message: string): BlockError {
  return new BlockError(`LUKS2 header: ${message}`, { errno: E.EINVAL });
}

function unsupported(message: string): BlockError {
  return new BlockError(`LUKS2 header: ${message}`, { errno: E.ENOTSUP });
}

// ---- the two copies ------------------------------------------------------------------------------------------

interface Copy {
  readonly sequence: bigint;
  readonly uuid: string;
  readonly json: string;
}

/** The copy at `offset`, or why there is none. */
async function readCopy(read: HeaderReader, offset: number, magic: string): Promise<Copy | string> {
  const binary = await read(offset, BINARY_BYTES);
  if (binary.toString('latin1', 0, 6) !== magic || binary.readUInt16BE(6) !== 2) return 'no magic number';
  const bytes = Number(binary.readBigUInt64BE(8));
  if (!HEADER_SIZES.includes(bytes)) return `size ${bytes} is not allowed`;
  if (binary.readBigUInt64BE(256) !== BigInt(offset)) return 'it is not at the offset it names';
  const name = zeroEnded(binary, 72, 32);
  if (name !== 'sha256' && name !== 'sha512' && name !== 'sha1') return `checksum ${name} is not supported`;
  const area = await read(offset + BINARY_BYTES, bytes - BINARY_BYTES);
  const stored = Buffer.from(binary.subarray(CHECKSUM_AT, CHECKSUM_AT + CHECKSUM_BYTES));
  const cleared = Buffer.from(binary);
  cleared.fill(0, CHECKSUM_AT, CHECKSUM_AT + CHECKSUM_BYTES);
  const sum = createHash(name).update(cleared).update(area).digest();
  if (!sum.equals(stored.subarray(0, sum.length))) return 'the checksum is wrong';
  const end = area.indexOf(0);
  return {
    sequence: binary.readBigUInt64BE(16),
    uuid: zeroEnded(binary, 168, 40),
    json: area.toString('utf8', 0, end < 0 ? area.length : end),
  };
}

function zeroEnded(bytes: Buffer, offset: number, length: number): string {
  const field = bytes.subarray(offset, offset + length);
  const end = field.indexOf(0);
  return field.toString('utf8', 0, end < 0 ? length : end);
}

/**
 * Whether there is a header of version 2: its first copy or, where nothing that begins as a volume is in front, the second.
 */
export async function hasLuks2Header(read: HeaderReader): Promise<boolean> {
  const start = await read(0, SECTOR_BYTES);
  if (start.toString('latin1', 0, 6) === MAGICS[0]) return start.readUInt16BE(6) === 2;
  for (const offset of HEADER_SIZES) {
    const second = await readCopy(read, offset, MAGICS[1]).catch(() => null);
    if (second !== null && typeof second !== 'string') return true;
  }
  return false;
}

/** The newer of the copies that are whole. The second one is looked for where it may be. */
async function newestCopy(read: HeaderReader): Promise<Copy> {
  const first = await readCopy(read, 0, MAGICS[0]);
  const found: Copy[] = typeof first === 'string' ? [] : [first];
  for (const offset of HEADER_SIZES) {
    // A file may end before the places where it could be.
    const second = await readCopy(read, offset, MAGICS[1]).catch(() => null);
    if (second !== null && typeof second !== 'string') {
      found.push(second);
      break;
    }
  }
  if (found.length === 0) throw invalid(typeof first === 'string' ? first : 'both copies are damaged');
  return found.reduce((best, copy) => (copy.sequence > best.sequence ? copy : best));
}

// ---- the JSON area -------------------------------------------------------------------------------------------

const PLACE: Place = { fail: invalid, path: '' };

function kdfOf(place: Place, kdf: Json): Kdf {
  const type = text(place, kdf, 'type');
  if (type === 'pbkdf2') {
    return {
      type,
      hash: luksHash(text(place, kdf, 'hash')),
      iterations: positive(place, kdf, 'iterations', PLAUSIBLE_ITERATIONS),
    };
  }
  if (type !== 'argon2i' && type !== 'argon2id') throw unsupported(`key derivation ${type} is not supported`);
  return {
    type,
    passes: positive(place, kdf, 'time', MAX_ARGON2_PASSES),
    memoryKib: positive(place, kdf, 'memory', MAX_ARGON2_MEMORY_KIB),
    lanes: positive(place, kdf, 'cpus', MAX_ARGON2_LANES),
  };
}

function keyslotOf(id: string, slot: Json): Keyslot | null {
  const place = at(PLACE, `keyslot ${id}`);
  // Slots that hold no key of a passphrase: an encryption that is under way is refused by the requirements.
  if (text(place, slot, 'type') !== 'luks2') return null;
  const kdf = objectAt(place, slot, 'kdf');
  const af = objectAt(place, slot, 'af');
  const area = objectAt(place, slot, 'area');
  if (text(place, af, 'type') !== 'luks1') throw invalid(`${place.path}: splitter is not luks1`);
  const keyBytes = positive(place, slot, 'key_size', MAX_KEY_BYTES);
  const stripes = positive(place, af, 'stripes', MAX_MATERIAL_BYTES / keyBytes);
  const areaBytes = sizeText(place, area, 'size');
  if (areaBytes < keyBytes * stripes) throw invalid(`${place.path}: area is smaller than the key material`);
  return {
    id: Number(id),
    keyBytes,
    kdf: kdfOf(at(place, 'kdf'), kdf),
    salt: Buffer.from(text(place, kdf, 'salt'), 'base64'),
    afHash: luksHash(text(place, af, 'hash')),
    stripes,
    encryption: text(place, area, 'encryption'),
    areaKeyBytes: positive(place, area, 'key_size', MAX_KEY_BYTES),
    areaOffset: sizeText(place, area, 'offset'),
    areaBytes,
  };
}

function segmentOf(segments: Json): Luks2Header['segment'] {
  const ids = Object.keys(segments);
  if (ids.length !== 1) throw unsupported(`${ids.length} segments are not supported`);
  const place = at(PLACE, `segment ${ids[0]}`);
  const segment = objectAt(place, segments, ids[0]!);
  const type = text(place, segment, 'type');
  if (type !== 'crypt') throw unsupported(`${place.path}: type ${type} is not supported`);
  if ('integrity' in segment) throw unsupported(`${place.path}: authenticated encryption is not supported`);
  const sectorBytes = positive(place, segment, 'sector_size', MAX_SECTOR_BYTES);
  if (sectorBytes < SECTOR_BYTES || !Number.isInteger(Math.log2(sectorBytes)))
    throw invalid(`${place.path}: sector size ${sectorBytes} is not allowed`);
  const offset = sizeText(place, segment, 'offset');
  const bytes = text(place, segment, 'size') === 'dynamic' ? null : sizeText(place, segment, 'size');
  if (offset % SECTOR_BYTES !== 0 || (bytes ?? 0) % sectorBytes !== 0)
    throw invalid(`${place.path}: not aligned to sectors`);
  const ivTweak = sizeText(place, segment, 'iv_tweak');
  return { offset, bytes, ivTweak, encryption: text(place, segment, 'encryption'), sectorBytes };
}

function digestOf(digests: Json): Luks2Header['digest'] {
  for (const [id, value] of Object.entries(digests)) {
    const place = at(PLACE, `digest ${id}`);
    const digest = objectAt(place, { [id]: value }, id);
    if (list(place, digest, 'segments').length === 0) continue;
    if (text(place, digest, 'type') !== 'pbkdf2') throw unsupported(`${place.path}: not pbkdf2`);
    return {
      hash: luksHash(text(place, digest, 'hash')),
      iterations: positive(place, digest, 'iterations', PLAUSIBLE_ITERATIONS),
      salt: Buffer.from(text(place, digest, 'salt'), 'base64'),
      value: Buffer.from(text(place, digest, 'digest'), 'base64'),
      keyslots: list(place, digest, 'keyslots').map(Number),
    };
  }
  throw invalid('no digest for the content');
}

function checkRequirements(root: Json): void {
  const config = objectAt(PLACE, root, 'config');
  const { requirements } = config as { readonly requirements?: { readonly mandatory?: unknown } };
  const mandatory = requirements?.mandatory;
  if (Array.isArray(mandatory) && mandatory.length > 0)
    throw unsupported(`requirement ${String(mandatory[0]).slice(0, 64)} is not supported`);
}

/** Reads and checks a header. Errors say which field is wrong. */
export async function readLuks2Header(read: HeaderReader): Promise<Luks2Header> {
  const copy = await newestCopy(read);
  let parsed: unknown;
  try {
    parsed = JSON.parse(copy.json);
  } catch {
    throw invalid('the JSON area is damaged');
  }
  const root = objectAt(PLACE, { header: parsed }, 'header');
  checkRequirements(root);
  const slots = Object.entries(objectAt(PLACE, root, 'keyslots'));
  if (slots.length > MAX_SLOTS) throw invalid(`${slots.length} key slots, at most ${MAX_SLOTS}`);
  const keyslots: Keyslot[] = [];
  const unusable = new Map<number, BlockError>();
  for (const [id, slot] of slots) {
    try {
      const keyslot = keyslotOf(id, objectAt(PLACE, { slot }, 'slot'));
      if (keyslot !== null) keyslots.push(keyslot);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      unusable.set(Number(id), error);
    }
  }
  keyslots.sort((one, other) => one.id - other.id);
  return {
    uuid: copy.uuid,
    keyslots,
    unusable,
    segment: segmentOf(objectAt(PLACE, root, 'segments')),
    digest: digestOf(objectAt(PLACE, root, 'digests')),
  };
}
