/**
 * LUKS volumes: opening with a passphrase, what is known of them without, and making new ones.
 *
 * The same bytes are at the start of a file in the `luks` format and behind qcow2's header extension "full disk
 * encryption header pointer"; where they are is the caller's business, offsets here are relative to their start.
 * Which offsets the payload's sectors are numbered by is too (qcow2: the host offset; luks: the guest's).
 */

import { randomBytes, randomUUID } from 'node:crypto';
import type { QCryptoBlockCreateOptionsLUKS, QCryptoBlockInfoLUKS } from '../../../schema/generated/types.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { CIPHERS, essivCipher, keyBytesOf, requireCipher, requireHash } from './algorithms.ts';
import { type BlockCipher, type CipherSpec, openBlockCipher } from './block-cipher.ts';
import {
  encodeLuksHeader,
  LUKS_HEADER_BYTES,
  type LuksAlgorithms,
  type LuksHeader,
  luksInfo,
  parseLuksHeader,
  resolveLuksAlgorithms,
  SALT_BYTES,
  SLOT_COUNT,
  slotOffsetBytes,
} from './luks-header.ts';
import { findMasterKey, type HeaderReader, makeDigest, makeSlot } from './luks-slots.ts';

/** Time a key derivation takes when nobody says otherwise. */
export const DEFAULT_ITER_TIME_MS = 2000;

export interface LuksVolume {
  readonly cipher: BlockCipher;
  readonly info: QCryptoBlockInfoLUKS;
  /** Where the encrypted content begins. */
  readonly payloadOffset: number;
}

export interface NewLuksVolume extends LuksVolume {
  /** Header and key material of the first slot: the first bytes of the volume. The rest up to the payload is unused. */
  readonly header: Buffer;
}

/** Everything but `key-secret`: the passphrase is an argument of its own. */
export type LuksCreateOptions = Omit<QCryptoBlockCreateOptionsLUKS, 'key-secret'>;

async function readHeader(read: HeaderReader, detached: boolean): Promise<LuksHeader> {
  return parseLuksHeader(await read(0, LUKS_HEADER_BYTES), detached);
}

/** Image information; needs no passphrase, nor ciphers this host may lack. */
export async function readLuksInfo(read: HeaderReader, detached = false): Promise<QCryptoBlockInfoLUKS> {
  return luksInfo(await readHeader(read, detached), detached);
}

/**
 * Opens a volume. Errors: a header that breaks the rules (the original's texts), a cipher this host lacks, a
 * passphrase no slot is for. Every active slot is tried, each taking as long as its header says.
 */
export async function openLuks(
  read: HeaderReader,
  passphrase: Buffer,
  detached = false,
): Promise<LuksVolume> {
  const header = await readHeader(read, detached);
  const algorithms = resolveLuksAlgorithms(header);
  requireUsable(header.keyBytes, algorithms);
  const key = await findMasterKey(header, algorithms, passphrase, read);
  return {
    cipher: openBlockCipher(algorithms.spec, key),
    info: luksInfo(header, detached),
    payloadOffset: header.payloadOffsetBytes,
  };
}

function requireUsable(keyBytes: number, { spec, hash }: LuksAlgorithms): void {
  requireCipher(spec.algorithm, spec.mode);
  requireHash(hash);
  if (spec.ivgenHash !== null) requireHash(spec.ivgenHash);
  if (spec.mode === 'xts' && keyBytes % 2 !== 0) {
    throw new BlockError('XTS cipher key length should be a multiple of 2', { errno: E.EINVAL });
  }
}

interface Plan extends LuksAlgorithms {
  readonly keyBytes: number;
  readonly cipherName: string;
  readonly cipherMode: string;
}

/** The options with their defaults; throws for what cannot be had. */
function planVolume(options: LuksCreateOptions): Plan {
  const algorithm = options['cipher-alg'] ?? 'aes-256';
  const mode = options['cipher-mode'] ?? 'xts';
  const ivgen = options['ivgen-alg'] ?? 'plain64';
  const hash = options['hash-alg'] ?? 'sha256';
  const essivHash = options['ivgen-hash-alg'] ?? 'sha256';
  const { luksName } = CIPHERS[algorithm];
  if (luksName === null) {
    throw new BlockError(`Algorithm '${algorithm}' not supported`, { errno: E.ENOTSUP });
  }
  if (ivgen === 'essiv') essivCipher(algorithm, essivHash);
  const spec: CipherSpec = { algorithm, mode, ivgen, ivgenHash: ivgen === 'essiv' ? essivHash : null };
  // The header keeps a hash that nobody uses, too, as the original's do.
  const namedHash = ivgen === 'essiv' ? essivHash : options['ivgen-hash-alg'];
  const keyBytes = keyBytesOf(algorithm, mode);
  requireUsable(keyBytes, { spec, hash });
  return {
    spec,
    hash,
    keyBytes,
    cipherName: luksName,
    cipherMode: `${mode}-${ivgen}${namedHash === undefined ? '' : `:${namedHash}`}`,
  };
}

/** Bytes before the payload of a volume made with these options. */
export function luksPayloadOffset(options: LuksCreateOptions): number {
  return slotOffsetBytes(planVolume(options).keyBytes, SLOT_COUNT);
}

/**
 * Makes a volume with a new random key, which `passphrase` opens. Takes a second and more: two key derivations of the
 * wanted time (`iter-time`), after measuring how fast this host is.
 */
export async function createLuks(
  options: LuksCreateOptions,
  passphrase: Buffer,
  detached = false,
): Promise<NewLuksVolume> {
  const plan = planVolume(options);
  const { keyBytes } = plan;
  const iterTimeMs = options['iter-time'] ?? DEFAULT_ITER_TIME_MS;
  const masterKey = randomBytes(keyBytes);
  const cipher = openBlockCipher(plan.spec, masterKey);
  try {
    const digest = await makeDigest(plan, masterKey, iterTimeMs);
    const first = await makeSlot(plan, masterKey, passphrase, slotOffsetBytes(keyBytes, 0), iterTimeMs);
    const slots = Array.from({ length: SLOT_COUNT }, (_, i) => ({
      active: false,
      iterations: 0,
      salt: Buffer.alloc(SALT_BYTES),
      offsetBytes: slotOffsetBytes(keyBytes, i),
    }));
    const record: LuksHeader = {
      cipherName: plan.cipherName,
      cipherMode: plan.cipherMode,
      hashName: plan.hash,
      // A detached header's content begins where its own file does.
      payloadOffsetBytes: detached ? 0 : slotOffsetBytes(keyBytes, SLOT_COUNT),
      keyBytes,
      ...digest,
      uuid: randomUUID(),
      slots: [first.slot, ...slots.slice(1)],
    };
    const header = Buffer.alloc(first.slot.offsetBytes + first.material.length);
    encodeLuksHeader(record).copy(header);
    first.material.copy(header, first.slot.offsetBytes);
    return { cipher, info: luksInfo(record, detached), payloadOffset: record.payloadOffsetBytes, header };
  } catch (error) {
    cipher.close();
    throw error;
  }
}
