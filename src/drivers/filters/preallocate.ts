/**
 * preallocate: a filter between a format and its file that lets the file grow in large steps.
 *
 * A write behind the end of the file first makes the file longer, by zeroes, than the write needs. The node's own
 * length is the end of what was written, `dataEnd`; the rest is given back when nobody may write any more.
 *
 *     0 ........ dataEnd ........ fileEnd
 *       written           zeroes, from `zeroStart` on untouched since they were allocated
 *
 * These are known, and the file is this node's alone, while its users write and resize; else all are null. Options:
 * `prealloc-size`, how much is added; `prealloc-align`, what the new length is a multiple of; in bytes.
 * Source of the facts: QEMU documentation, "preallocate" filter; QMP reference, BlockdevOptionsPreallocate.
 */

import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../block/contract/guard.ts';
import type { DriverOptions } from '../../block/contract/image.ts';
import { Perm, type PermissionPair, Req, Role } from '../../block/contract/request.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co, sync } from '../../block/io/callbacks.ts';
import { truncateNow } from '../../block/io/size.ts';
import { CoMutex } from '../../coroutine/co-mutex.ts';
import { E } from '../../errors/errno.ts';
import { BlockError, ioError } from '../../errors/error.ts';
import { filtered, passOn } from './pass-on.ts';

interface Settings {
  readonly alignBytes: number;
  readonly sizeBytes: number;
}

interface Known {
  dataEnd: number;
  fileEnd: number;
  zeroStart: number;
}

interface PreallocateState {
  settings: Settings;
  /** Null: nothing has been preallocated. */
  known: Known | null;
  /** Its users write and resize. */
  active: boolean;
  /** Held while the file's length changes. */
  readonly resizing: CoMutex;
}

type PreallocateNode = BlockNode<PreallocateState>;

const DEFAULT_ALIGN_BYTES = 1024 ** 2;
const DEFAULT_SIZE_BYTES = 128 * 1024 ** 2;
const BLOCK_BYTES = 512;

function settingsOf(options: DriverOptions, file: BlockNode): Settings {
  const given = (name: string, otherwise: number): number => {
    const value = Number(options[name] ?? otherwise);
    if (value < 0) throw new BlockError(`Parameter '${name}' expects a non-negative number below 2^64`);
    return value;
  };
  const alignBytes = given('prealloc-align', DEFAULT_ALIGN_BYTES);
  const sizeBytes = given('prealloc-size', DEFAULT_SIZE_BYTES);
  const unaligned = 'prealloc-align parameter of preallocate filter is not aligned to';
  if (alignBytes % BLOCK_BYTES !== 0) throw new BlockError(`${unaligned} ${BLOCK_BYTES}`);
  const { requestAlignment } = file.limits;
  if (alignBytes % requestAlignment !== 0)
    throw new BlockError(`${unaligned} underlying node request alignment (${requestAlignment})`);
  return { alignBytes, sizeBytes };
}

async function open(_node: PreallocateNode, context: OpenContext): Promise<PreallocateState> {
  const edge = await context.openChild('file', Role.filtered | Role.primary, true);
  return {
    settings: settingsOf(context.options, edge!.node),
    known: null,
    active: false,
    resizing: new CoMutex(),
  };
}

function mayGrow({ perm }: PermissionPair): boolean {
  return (perm & (Perm.write | Perm.resize)) === (Perm.write | Perm.resize);
}

// ---- growing and shrinking -----------------------------------------------------------------------------------

async function lookAtFile(node: PreallocateNode, guard: GraphReadGuard): Promise<Known> {
  const { state } = node;
  if (state.known === null) {
    const end = await co.getLength(filtered(node), guard);
    state.known ??= { dataEnd: end, fileEnd: end, zeroStart: end };
  }
  return state.known;
}

/**
 * Before a write of [offset, offset+bytes): makes the file longer if the write goes behind its end. True: the range
 * reads as zeroes already and nothing has written to it, so that a zero write has nothing to do.
 */
async function grow(
  node: PreallocateNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  isZero: boolean,
): Promise<boolean> {
  const { state } = node;
  const end = offset + bytes;
  if (!state.active || bytes === 0) return false;
  const known = state.known ?? (await lookAtFile(node, guard));
  // The file's end only moves here: a write inside it never meets the zeroes that are being added.
  const isInside =
    end <= known.fileEnd || (await state.resizing.with(node.name, () => addZeroes(node, known, guard, end)));
  const isDone = isZero && isInside && offset >= known.zeroStart;
  if (!isDone) known.zeroStart = Math.max(known.zeroStart, end);
  known.dataEnd = Math.max(known.dataEnd, end);
  return isDone;
}

/** Makes the file longer than `end`, by zeroes. False: that did not work, and the write makes it as long as it needs. */
async function addZeroes(
  node: PreallocateNode,
  known: Known,
  guard: GraphReadGuard,
  end: number,
): Promise<boolean> {
  if (end <= known.fileEnd) return true;
  const { alignBytes, sizeBytes } = node.state.settings;
  const wanted = end + sizeBytes;
  const newEnd = alignBytes === 0 ? wanted : Math.ceil(wanted / alignBytes) * alignBytes;
  const from = known.fileEnd;
  try {
    if (newEnd > Number.MAX_SAFE_INTEGER) throw ioError(E.EFBIG);
    await co.pwriteZeroes(filtered(node), guard, from, newEnd - from, Req.noFallback | Req.serialising);
    known.fileEnd = newEnd;
    return true;
  } catch {
    // The range of the write is its own from now on: zeroes of a later attempt must not come over its data.
    known.fileEnd = end;
    known.zeroStart = end;
    return false;
  }
}

/** Gives back what nobody wrote to, without waiting for anything; false: that cannot be done. */
function giveBackNow(node: PreallocateNode): boolean {
  const { state } = node;
  const { known } = state;
  if (known === null) return true;
  if (state.resizing.holder !== null) return false;
  if (known.dataEnd < known.fileEnd && !truncateNow(filtered(node), known.dataEnd)) return false;
  state.known = null;
  return true;
}

async function giveBack(node: PreallocateNode, guard: GraphReadGuard): Promise<void> {
  const { state } = node;
  await state.resizing.with(node.name, async () => {
    const { known } = state;
    if (known === null) return;
    const { dataEnd, fileEnd } = known;
    // A write that comes meanwhile waits for the mutex instead of going where the file is being cut.
    known.fileEnd = dataEnd;
    if (dataEnd < fileEnd) await co.truncate(filtered(node), guard, dataEnd, true, 'off', false);
  });
}

export const preallocate: BlockDriver<PreallocateState> = {
  name: 'preallocate',
  kind: 'filter',
  exclusiveTruncate: true,
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  open,
  async close(node) {
    await node.layer.graphLock.withRead((guard) => giveBack(node, guard));
  },
  mutableOptions: { 'prealloc-align': 'refused', 'prealloc-size': 'refused' },
  // As in the original the file that counts is the one so far.
  reopenPrepare: async (node, { options }) => settingsOf(options, filtered(node)),
  reopenCommit({ state }, prepared) {
    state.settings = prepared as Settings;
  },
  childPermissions(_node, _roles, { perm, shared }) {
    // What is known of the file's ends holds as long as nobody else moves them.
    return mayGrow({ perm, shared })
      ? { perm, shared: shared & ~(Perm.write | Perm.resize) }
      : { perm, shared };
  },
  checkPermissions(node, wanted) {
    // The permission to cut the file goes with the users.
    if ((node.state as PreallocateState | undefined) !== undefined && !mayGrow(wanted)) giveBackNow(node);
  },
  setPermissions({ state }, wanted) {
    if ((state as PreallocateState | undefined) !== undefined) state.active = mayGrow(wanted);
  },
  ...passOn,
  tryPreadv: (node, guard, offset, bytes, vec, short) =>
    sync.tryPreadv(filtered(node), guard, offset, bytes, vec, short),
  tryPwritev(node, guard, offset, bytes, vec, short) {
    const { known, active } = node.state;
    const end = offset + bytes;
    if (active && (known === null || end > known.dataEnd)) return false;
    if (known !== null && end > known.zeroStart) return false;
    return sync.tryPwritev(filtered(node), guard, offset, bytes, vec, short);
  },
  async pwritev(node, guard, offset, bytes, vec, flags) {
    await grow(node, guard, offset, bytes, false);
    await co.pwritev(filtered(node), guard, offset, bytes, vec, flags);
  },
  async pwriteZeroes(node, guard, offset, bytes, flags) {
    // Zeroes that are there already need a flush like any others: the I/O path does it where it is asked for.
    if (await grow(node, guard, offset, bytes, true)) return;
    await co.pwriteZeroes(filtered(node), guard, offset, bytes, flags);
  },
  getLength: async (node, guard) => node.state.known?.dataEnd ?? co.getLength(filtered(node), guard),
  async truncate(node, guard, length, exact, prealloc, zeroFill) {
    const { state } = node;
    if (state.active && prealloc === 'off') {
      const known = await lookAtFile(node, guard);
      if (length > known.dataEnd && length <= known.fileEnd) {
        known.dataEnd = length;
        return;
      }
    }
    await giveBack(node, guard);
    state.known = null;
    await co.truncate(filtered(node), guard, length, exact, prealloc, zeroFill);
  },
};
