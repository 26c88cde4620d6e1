/**
 * Changing the key slots of a LUKS volume: another passphrase, or one less.
 *
 * The data is never touched: all slots hold the same master key. At every instant the volume opens with what was not
 * taken away: key material is written before the header that names it.
 */

import { randomBytes } from 'node:crypto';
import type { QCryptoBlockAmendOptionsLUKS } from '../../../schema/generated/types.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { requireCipher, requireHash } from './algorithms.ts';
import { DEFAULT_ITER_TIME_MS } from './luks.ts';
import {
  encodeLuksHeader,
  LUKS_HEADER_BYTES,
  type LuksAlgorithms,
  type LuksHeader,
  materialBytes,
  parseLuksHeader,
  resolveLuksAlgorithms,
  SALT_BYTES,
  SLOT_COUNT,
} from './luks-header.ts';
import { findMasterKey, type HeaderReader, makeSlot, unlockSlot } from './luks-slots.ts';

/** Access to the header area, offsets from its start. */
export interface HeaderAccess {
  readonly read: HeaderReader;
  readonly write: (offset: number, data: Buffer) => Promise<void>;
  /** Everything written so far reaches stable storage. */
  readonly flush: () => Promise<void>;
}

export interface LuksAmendContext {
  /** The passphrase in a secret object; throws when there is none of the name. */
  readonly passphraseOf: (secretId: string) => Buffer;
  /** The secret the volume was opened with; used unless the options name another. */
  readonly currentSecret: string;
  /** Allows to take the last passphrase away, and to replace one that is in use. */
  readonly force: boolean;
  /** The header is a file of its own. */
  readonly detached?: boolean;
}

/** An open volume's header while it is being changed. */
interface Volume extends LuksAlgorithms {
  readonly header: LuksHeader;
  readonly access: HeaderAccess;
}

const refuse = (message: string): BlockError => new BlockError(message, { errno: E.EINVAL });

function checkIndex(index: number): void {
  if (index < 0 || index >= SLOT_COUNT) {
    // The original's number is unsigned.
    throw refuse(`Invalid keyslot ${index >>> 0} specified, must be between 0 and ${SLOT_COUNT - 1}`);
  }
}

async function writeSlots(volume: Volume, slots: LuksHeader['slots']): Promise<void> {
  await volume.access.write(0, encodeLuksHeader({ ...volume.header, slots }));
  await volume.access.flush();
}

/** The slot to fill: the wanted one, or the first that is free. */
function chooseFreeSlot(header: LuksHeader, wanted: number | undefined, force: boolean): number {
  if (wanted !== undefined) {
    checkIndex(wanted);
    if (header.slots[wanted]?.active && !force) {
      throw refuse(`Refusing to overwrite active keyslot ${wanted} - please erase it first`);
    }
    return wanted;
  }
  const free = header.slots.findIndex(({ active }) => !active);
  if (free < 0) throw refuse("Can't add a keyslot - all keyslots are in use");
  return free;
}

async function addPassphrase(
  volume: Volume,
  options: QCryptoBlockAmendOptionsLUKS,
  context: LuksAmendContext,
): Promise<void> {
  const { header, access } = volume;
  const newSecret = options['new-secret'];
  if (newSecret === undefined) throw refuse("'new-secret' is required to activate a keyslot");
  if (options['old-secret'] !== undefined) {
    throw refuse("'old-secret' must not be given when activating keyslots");
  }
  const index = chooseFreeSlot(header, options.keyslot, context.force);
  const current = context.passphraseOf(options.secret ?? context.currentSecret);
  const masterKey = await findMasterKey(header, volume, current, access.read);
  const passphrase = context.passphraseOf(newSecret);
  const offset = header.slots[index]?.offsetBytes ?? 0;
  const iterTimeMs = options['iter-time'] ?? DEFAULT_ITER_TIME_MS;
  const { slot, material } = await makeSlot(volume, masterKey, passphrase, offset, iterTimeMs);
  await access.write(offset, material);
  await access.flush();
  await writeSlots(volume, header.slots.with(index, slot));
}

/** The active slots that `passphrase` opens. */
async function slotsOf(volume: Volume, passphrase: Buffer): Promise<number[]> {
  const found: number[] = [];
  for (let i = 0; i < SLOT_COUNT; i++) {
    if ((await unlockSlot(volume.header, volume, i, passphrase, volume.access.read)) !== null) found.push(i);
  }
  return found;
}

/** Slot `index` as the only one to erase, after the checks. */
async function chooseSlot(
  volume: Volume,
  index: number,
  oldPassphrase: Buffer | null,
  force: boolean,
): Promise<number[]> {
  const { header, access } = volume;
  checkIndex(index);
  if (oldPassphrase !== null) {
    const key = await unlockSlot(header, volume, index, oldPassphrase, access.read);
    if (key === null) {
      throw refuse(`Given keyslot ${index} doesn't contain the given old password for erase operation`);
    }
  }
  const active = header.slots[index]?.active === true;
  if (!active && !force) throw refuse(`Given keyslot ${index} is already erased (inactive) `);
  if (active && !force && header.slots.filter((slot) => slot.active).length === 1) {
    throw refuse(
      `Attempt to erase the only active keyslot ${index} which will erase all the data in the image irreversibly - refusing operation`,
    );
  }
  return [index];
}

/** All slots with the passphrase, after the checks. */
async function chooseByPassphrase(volume: Volume, passphrase: Buffer, force: boolean): Promise<number[]> {
  const found = await slotsOf(volume, passphrase);
  if (found.length === 0) throw refuse('No keyslots match given (old) password for erase operation');
  if (found.length === volume.header.slots.filter(({ active }) => active).length && !force) {
    throw refuse(
      'All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation',
    );
  }
  return found;
}

async function erase(
  volume: Volume,
  options: QCryptoBlockAmendOptionsLUKS,
  context: LuksAmendContext,
): Promise<void> {
  const { header, access } = volume;
  const oldSecret = options['old-secret'];
  if (options['new-secret'] !== undefined) {
    throw refuse("'new-secret' must not be given when erasing keyslots");
  }
  if (options['iter-time'] !== undefined) {
    throw refuse("'iter-time' must not be given when erasing keyslots");
  }
  const old = oldSecret === undefined ? null : context.passphraseOf(oldSecret);
  let doomed: number[];
  if (options.keyslot !== undefined) {
    doomed = await chooseSlot(volume, options.keyslot, old, context.force);
  } else if (old !== null) {
    doomed = await chooseByPassphrase(volume, old, context.force);
  } else {
    throw refuse(
      'To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given',
    );
  }
  const slots = header.slots.map((slot, i) =>
    doomed.includes(i) ? { ...slot, active: false, iterations: 0, salt: Buffer.alloc(SALT_BYTES) } : slot,
  );
  await writeSlots(volume, slots);
  for (const index of doomed) {
    const { offsetBytes = 0 } = header.slots[index] ?? {};
    await access.write(offsetBytes, randomBytes(materialBytes(header.keyBytes)));
  }
  await access.flush();
}

/** Changes key slots as `options` say. Errors and their texts are those of `qemu-img amend`. */
export async function amendLuks(
  access: HeaderAccess,
  options: QCryptoBlockAmendOptionsLUKS,
  context: LuksAmendContext,
): Promise<void> {
  const header = parseLuksHeader(await access.read(0, LUKS_HEADER_BYTES), context.detached);
  const algorithms = resolveLuksAlgorithms(header);
  requireCipher(algorithms.spec.algorithm, algorithms.spec.mode);
  requireHash(algorithms.hash);
  const volume: Volume = { header, access, ...algorithms };
  await (options.state === 'active' ? addPassphrase : erase)(volume, options, context);
}
