/**
 * Changing options of an existing image: version, refcount width, lazy refcounts, size, data file, and the passphrases
 * of LUKS. What cannot be changed is refused in the original's words.
 *
 * Each change is complete when the next begins; one that fails leaves those before it in place. The order is the
 * original's: what needs version 3 comes after the upgrade, the downgrade comes last.
 * Refcounts are amend-refcounts.ts, versions amend-version.ts.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { CreateOption, CreateOptionValues, CreateProgress } from '../../../../block/contract/image.ts';
import type { BlockNode } from '../../../../block/graph/node.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
import { readLuksInfo } from '../../../crypto/luks.ts';
import { amendLuks } from '../../../crypto/luks-amend.ts';
import { LUKS_AMEND_OPTIONS, luksAmendOptions, prefixedOptions } from '../../../crypto/luks-options.ts';
import { passphraseFromSecret } from '../../../crypto/passphrase.ts';
import type { Header } from '../layout/header.ts';
import { Autoclear, Compat, Crypt } from '../layout/layout.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { barrier, changeHeader, readMetadata, writeMetadata } from '../metadata/metadata-io.ts';
import { createStages } from './amend-progress.ts';
import { changeRefcountWidth } from './amend-refcounts.ts';
import { checkDowngrade, checkUpgrade, clearDirtyBit, downgrade, upgrade } from './amend-version.ts';
import { checkResizable } from './resize.ts';

/** 16 bits, the only width of version 2. */
const NORMAL_REFCOUNT_ORDER = 4;

/** Options that the tools' amend takes. */
export const AMEND_OPTIONS: readonly CreateOption[] = [
  ...prefixedOptions('encrypt.', LUKS_AMEND_OPTIONS),
  { name: 'size', type: 'size', help: 'Virtual disk size' },
  { name: 'compat', type: 'string', help: 'Compatibility level (v2 [0.10] or v3 [1.1])' },
  { name: 'backing_file', type: 'string', help: 'File name of a base image' },
  { name: 'backing_fmt', type: 'string', help: 'Image format of the base image' },
  { name: 'data_file', type: 'string', help: 'File name of an external data file' },
  { name: 'data_file_raw', type: 'bool', help: 'The external data file must stay valid as a raw image' },
  { name: 'lazy_refcounts', type: 'bool', help: 'Postpone refcount updates' },
  { name: 'refcount_bits', type: 'number', help: 'Width of a reference count entry in bits' },
];

function refuse(message: string, hint?: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL, ...(hint !== undefined && { hint }) });
}

// ---- what is asked for ---------------------------------------------------------------------------------------

interface Changes {
  readonly version: number;
  readonly refcountOrder: number;
  readonly lazy: boolean | null;
  /** Bytes; null: stays. */
  readonly size: number | null;
  /** Empty: the name is removed from the header. */
  readonly dataFile: string | null;
  readonly dataFileRaw: boolean | null;
  readonly encrypt: CreateOptionValues | null;
}

function versionOf(compat: string): number {
  if (compat === 'v2' || compat === '0.10') return 2;
  if (compat === 'v3' || compat === '1.1') return 3;
  throw refuse(`Unknown compatibility level ${compat}`);
}

function refcountOrderOf(text: string): number {
  const order = Math.log2(Number(text));
  if (!Number.isInteger(order) || order < 0 || order > 6)
    throw refuse('Refcount width must be a power of two and may not exceed 64 bits');
  return order;
}

/** The backing file cannot be changed here; naming the one there is, is no change. */
function checkBacking({ state: { header } }: Qcow2Node, values: CreateOptionValues): void {
  const { backing_file: file, backing_fmt: format } = values;
  if (file === undefined && format === undefined) return;
  if ((file ?? null) === header.backingFile && (format ?? null) === header.backingFormat) return;
  throw refuse('Cannot amend the backing file', "You can use 'qemu-img rebase' instead.");
}

function encryptValues(values: CreateOptionValues): CreateOptionValues | null {
  const own = Object.entries(values).filter(([name]) => name.startsWith('encrypt.'));
  if (own.length === 0) return null;
  return Object.fromEntries(own.map(([name, value]) => [name.slice('encrypt.'.length), value]));
}

/** The changes, after the checks that need nothing else. */
function plan(node: Qcow2Node, values: CreateOptionValues): Changes {
  const { header, hasDataFile } = node.state;
  checkBacking(node, values);
  const version = values.compat === undefined ? header.version : versionOf(values.compat);
  const bits = values.refcount_bits;
  const refcountOrder = bits === undefined ? header.refcountOrder : refcountOrderOf(bits);
  const isOn = (value: string | undefined): boolean | null => (value === undefined ? null : value === 'on');
  const dataFileRaw = isOn(values.data_file_raw);
  if (values.data_file !== undefined && !hasDataFile)
    throw refuse('data-file can only be set for images that use an external data file');
  if (dataFileRaw === true && (header.autoclear & Autoclear.dataFileRaw) === 0)
    throw refuse('data-file-raw cannot be set on existing images');
  return {
    version,
    refcountOrder,
    lazy: isOn(values.lazy_refcounts),
    // As in the original, a size of 0 is none.
    size: Number(values.size ?? 0) === 0 ? null : Number(values.size),
    dataFile: values.data_file ?? null,
    dataFileRaw,
    encrypt: encryptValues(values),
  };
}

// ---- doing it ------------------------------------------------------------------------------------------------

/** Changes format options; values as of AMEND_OPTIONS, and those of x-blockdev-amend in dotted form. */
export async function amend(
  node: Qcow2Node,
  guard: GraphReadGuard,
  values: CreateOptionValues,
  force: boolean,
  progress: CreateProgress,
): Promise<void> {
  const { header } = node.state;
  const changes = plan(node, values);
  if (node.readOnly) throw new BlockError('Block node is read-only', { errno: E.EACCES });
  await check(node, guard, changes);
  const stages = createStages(progress, stageCount(header, changes));
  if (changes.version > header.version) {
    const step = stages.begin();
    step(0, 2);
    step(1, 2);
    await upgrade(node, guard);
    step(2, 2);
  }
  if (changes.encrypt !== null) {
    const step = stages.begin();
    await amendEncryption(node, guard, changes.encrypt, force, progress);
    step(1, 1);
  }
  if (changes.refcountOrder !== header.refcountOrder)
    await changeRefcountWidth(node, guard, changes.refcountOrder, stages.begin());
  await amendDataFile(node, guard, changes);
  if (changes.lazy !== null) await amendLazy(node, guard, changes.lazy);
  if (changes.size !== null)
    await co.truncate(node as unknown as BlockNode, guard, changes.size, false, 'off', false);
  if (changes.version < header.version) await downgrade(node, guard, stages.begin());
}

/** The parts of the work that take their time: those that are shown. */
function stageCount({ version, refcountOrder }: Header, changes: Changes): number {
  const parts = [
    changes.version !== version,
    changes.encrypt !== null,
    changes.refcountOrder !== refcountOrder,
  ];
  return parts.filter(Boolean).length;
}

/** Refuses what cannot be done, before anything is: in the order in which the changes are made. */
async function check(node: Qcow2Node, guard: GraphReadGuard, changes: Changes): Promise<void> {
  const { header } = node.state;
  const { version, refcountOrder, lazy, size } = changes;
  if (version > header.version) await checkUpgrade(node, guard);
  if (refcountOrder !== header.refcountOrder && version < 3 && refcountOrder !== NORMAL_REFCOUNT_ORDER) {
    throw refuse(
      'Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)',
    );
  }
  if (lazy === true && version < 3 && (header.compatible & Compat.lazyRefcounts) === 0) {
    throw refuse(
      'Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)',
    );
  }
  if (size !== null) checkResizable(node, size, 'off', Math.max(version, header.version));
  if (version < header.version) checkDowngrade(node, refcountOrder, size ?? header.size);
}

async function amendDataFile(
  node: Qcow2Node,
  guard: GraphReadGuard,
  { dataFile, dataFileRaw }: Changes,
): Promise<void> {
  const { header } = node.state;
  if (dataFile === null && dataFileRaw !== false) return;
  await changeHeader(node, guard, {
    ...(dataFile !== null && { dataFile: dataFile === '' ? null : dataFile }),
    ...(dataFileRaw === false && { autoclear: header.autoclear & ~Autoclear.dataFileRaw }),
  });
}

async function amendLazy(node: Qcow2Node, guard: GraphReadGuard, lazy: boolean): Promise<void> {
  const s = node.state;
  const { compatible } = s.header;
  if (lazy === ((compatible & Compat.lazyRefcounts) !== 0)) return;
  if (lazy) {
    await changeHeader(node, guard, { compatible: compatible | Compat.lazyRefcounts });
    s.lazyRefcounts = true;
    return;
  }
  s.lazyRefcounts = false;
  await clearDirtyBit(node, guard);
  await changeHeader(node, guard, { compatible: compatible & ~Compat.lazyRefcounts });
}

// ---- passphrases ---------------------------------------------------------------------------------------------

async function amendEncryption(
  node: Qcow2Node,
  guard: GraphReadGuard,
  values: CreateOptionValues,
  force: boolean,
  progress: CreateProgress,
): Promise<void> {
  const { header, extras } = node.state;
  // The format is named by x-blockdev-amend only.
  const overQmp = values.format !== undefined;
  if (header.cryptMethod === Crypt.none) {
    throw refuse(
      overQmp
        ? "image is not encrypted, can't amend"
        : "Can't amend encryption options - encryption not present",
    );
  }
  if (header.cryptMethod !== Crypt.luks || header.encryption === null)
    throw refuse('Only LUKS encryption options can be amended for qcow2 with this command');
  if (overQmp && values.format !== 'luks')
    throw refuse("Amend can't be used to change the qcow2 encryption format");
  const { offset: start, bytes: length } = header.encryption;
  const inside = (offset: number, bytes: number): number => {
    if (offset < 0 || offset + bytes > length) throw refuse('Request for data outside of extension header');
    return start + offset;
  };
  const read = async (offset: number, bytes: number): Promise<Buffer> =>
    readMetadata(node, guard, inside(offset, bytes), bytes);
  await progress.checked?.();
  const options = node.settings.options as { readonly encrypt?: { readonly 'key-secret'?: string } };
  await amendLuks(
    {
      read,
      write: async (offset, data) => writeMetadata(node, guard, inside(offset, data.length), data, null),
      flush: () => barrier(node, guard),
    },
    luksAmendOptions(values),
    {
      passphraseOf: (id) => passphraseFromSecret(id, node.layer.secret(id)),
      currentSecret: options.encrypt?.['key-secret'] ?? '',
      force,
    },
  );
  extras.luks = await readLuksInfo(read);
}
