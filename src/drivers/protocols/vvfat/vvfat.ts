/**
 * vvfat: a folder of the host as a disk with a FAT file system.
 *
 * The disk is laid out when it is opened (scan.ts) and read from memory and the files (base.ts). With rw=on the guest's
 * writes are kept beside (overlay.ts); when the guest flushes, and at the end, the file system is read back (tree.ts),
 * and if it is whole, the folder is brought up to date with it (commit.ts). A guest in the middle of a change is waited
 * for; a file system that is broken at the end is reported, and the folder stays as it was at the last good flush.
 *
 * Options: `dir`; `fat-type` 12, 16 or 32 (default: 16, on floppies 12); `floppy`; `label`; `rw`.
 * Beyond the original: FAT32 is one, folders of any size, links are not followed, nothing is ever half written, and
 * changes that the original cannot bring back (and takes the process down with) are an error or are brought back.
 */

import { stat } from 'node:fs/promises';
import { copyFromVector, copyToVector } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { CoMutex } from '../../../coroutine/co-mutex.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { type BaseDisk, closeBase, createBase, readBase } from './base.ts';
import { commitTree } from './commit.ts';
import { createLayout, SECTOR_BYTES } from './layout.ts';
import { vvfatNames } from './names.ts';
import { createOverlay, type Overlay, readOverlay, writeOverlay } from './overlay.ts';
import { scanFolder } from './scan.ts';
import { Inconsistent, readTree, type Tree } from './tree.ts';

interface VvfatState {
  readonly base: BaseDisk;
  /** Null: not to be written to. */
  readonly overlay: Overlay | null;
  /** Held by writes and while the folder is brought up to date. */
  readonly lock: CoMutex;
  /** What the folder holds of the disk. */
  tree: Tree;
}

type VvfatNode = BlockNode<VvfatState>;

interface VvfatOptions {
  readonly dir: string;
  readonly 'fat-type'?: number;
  readonly floppy?: boolean;
  readonly label?: string;
  readonly rw?: boolean;
}

const DEFAULT_LABEL = 'QEMU VVFAT';
const MAX_LABEL_BYTES = 11;

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

function checkedType(type: number): 0 | 12 | 16 | 32 {
  if (type === 0 || type === 12 || type === 16 || type === 32) return type;
  throw invalid('Valid FAT types are only 12, 16 and 32');
}

async function open(node: VvfatNode, context: OpenContext): Promise<VvfatState> {
  const options = context.options as unknown as VvfatOptions;
  const fatType = checkedType(options['fat-type'] ?? 0);
  const label = options.label ?? DEFAULT_LABEL;
  if (Buffer.byteLength(label) > MAX_LABEL_BYTES)
    throw invalid(`vvfat label cannot be longer than ${MAX_LABEL_BYTES} bytes`);
  const writable = options.rw === true;
  if (writable && context.readOnly)
    throw new BlockError("Unable to set VVFAT to 'rw' when drive is read-only", { errno: E.EACCES });
  if (!writable && !context.readOnly) {
    if (!context.autoReadOnly) throw new BlockError('Image is read-only', { errno: E.EACCES });
    node.readOnly = true;
  }
  const found = await stat(options.dir).catch(() => null);
  if (found?.isDirectory() !== true)
    throw new BlockError(`Could not read directory ${options.dir}`, { errno: E.ENOENT });
  const layout = createLayout(fatType, options.floppy === true);
  const base = createBase(options.dir, layout, await scanFolder(options.dir, layout, label), label);
  const state: VvfatState = {
    base,
    overlay: writable ? await createOverlay(layout.sectors) : null,
    lock: new CoMutex(),
    tree: new Map(),
  };
  if (writable)
    state.tree = await readTree(layout, (offset, bytes) => readDisk(state, offset, bytes), base.reserved);
  return state;
}

/** Reads whole sectors as the guest sees them. */
async function readDisk({ base, overlay }: VvfatState, offset: number, bytes: number): Promise<Buffer> {
  const target = Buffer.alloc(bytes);
  const below = (at: number, part: Buffer): Promise<void> => readBase(base, at, part);
  if (overlay === null) await below(offset, target);
  else await readOverlay(overlay, offset, target, below);
  return target;
}

/** Brings the folder up to date, if the disk is a file system at the moment; else says why it is not. */
async function bringUpToDate(state: VvfatState): Promise<string | null> {
  const { base, overlay } = state;
  if (overlay === null || !overlay.dirty) return null;
  const read = (offset: number, bytes: number): Promise<Buffer> => readDisk(state, offset, bytes);
  let after: Tree;
  try {
    after = await readTree(base.layout, read, base.reserved);
    await commitTree({ base, overlay, read, before: state.tree, after });
  } catch (error) {
    if (error instanceof Inconsistent) return error.message;
    throw hostError(error);
  }
  state.tree = after;
  overlay.fresh.fill(0);
  overlay.dirty = false;
  return null;
}

/** What node:fs throws, as an error of the block layer. */
function hostError(error: unknown): unknown {
  const { errno, message } = error as NodeJS.ErrnoException;
  return errno === undefined ? error : new BlockError(`vvfat: ${message}`, { errno: -errno });
}

async function close(node: VvfatNode): Promise<void> {
  const { state } = node;
  try {
    const why = await bringUpToDate(state);
    if (why !== null)
      node.layer.report(`vvfat: '${state.base.dir}' does not have the last changes of the guest: ${why}\n`);
  } finally {
    await state.overlay?.file.close();
    await closeBase(state.base);
  }
}

export const vvfat: BlockDriver<VvfatState> = {
  name: 'vvfat',
  kind: 'protocol',
  ...vvfatNames,
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  strongOptions: ['dir', 'fat-type', 'floppy', 'label', 'rw'],
  open,
  close,
  mutableOptions: {},
  reopenPrepare: async (node, { settings }) => {
    if (settings.readOnly !== node.readOnly)
      throw new BlockError('vvfat: A folder stays read-only or writable', { errno: E.ENOTSUP });
  },
  reopenCommit: () => undefined,
  refreshLimits(_node, limits) {
    limits.requestAlignment = SECTOR_BYTES;
  },
  async preadv({ state }, _guard, offset, bytes, vec) {
    try {
      copyToVector(vec, await readDisk(state, offset, bytes));
    } catch (error) {
      throw hostError(error);
    }
  },
  async pwritev({ state }, _guard, offset, bytes, vec) {
    const { overlay } = state;
    if (overlay === null) throw ioError(E.EPERM);
    const data = Buffer.alloc(bytes);
    copyFromVector(vec, data);
    try {
      await state.lock.with('vvfat write', () => writeOverlay(overlay, offset, data));
    } catch (error) {
      throw hostError(error);
    }
  },
  async flush({ state }) {
    // Not whole at the moment: the guest is in the middle of something, and will flush again.
    if (state.overlay !== null) await state.lock.with('vvfat flush', () => bringUpToDate(state));
  },
  getLength: async ({ state }) => state.base.layout.sectors * SECTOR_BYTES,
  getAllocatedFileSize: async () => -1,
};
