/**
 * copy-before-write: a filter that copies what is about to be overwritten to a target first.
 *
 * From the moment it is opened, the content of `file` as it was stays available: what has not been overwritten is in
 * `file`, the rest in `target`. snapshot-access nodes read it from here (preadvSnapshot), backup jobs copy the rest.
 * Three sets of clusters: `copy.dirty`, to be copied before the next write; `done`, overwritten since, so that only
 * the target has it; `access`, what may be read of the snapshot.
 * Source of the facts: QMP reference, BlockdevOptionsCbw; behaviour of the original where that is silent.
 */

import { type IoVector, sliceVector } from '../../aio/memory.ts';
import {
  checkMergeable,
  createBitmap,
  type DirtyBitmap,
  lookUpBitmap,
  mergeBitmap,
  releaseBitmap,
  setDirty,
} from '../../block/bitmaps/dirty-bitmap.ts';
import type { BlockDriver, OpenContext } from '../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../block/contract/guard.ts';
import { Perm, Req, Role, Status } from '../../block/contract/request.ts';
import {
  type BlockCopy,
  breakCopy,
  copyBeforeWrite as copyClusters,
  createBlockCopy,
  needsCopy,
} from '../../block/copy/block-copy.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { co, sync } from '../../block/io/callbacks.ts';
import { blockStatusAbove } from '../../block/io/status-chain.ts';
import { nodeFilename } from '../../block/open/filename.ts';
import { CoQueue } from '../../coroutine/co-queue.ts';
import { E } from '../../errors/errno.ts';
import { assert, BlockError, errnoOf, ioError, reasonOf } from '../../errors/error.ts';
import { copyClusterBytes, isInChain } from './copy-cluster.ts';

/** A read of the snapshot from `file`: writes to these clusters wait for it. */
interface FrozenRead {
  readonly first: number;
  readonly end: number;
  readonly ended: CoQueue;
}

export interface CbwState {
  readonly copy: BlockCopy;
  readonly breakSnapshot: boolean;
  /** 0: a write waits for its copy however long it takes. */
  readonly timeoutMs: number;
  /** Bits of `copy.dirty`; on the source, as in the original. */
  readonly dirty: DirtyBitmap;
  readonly access: DirtyBitmap;
  readonly done: DirtyBitmap;
  readonly frozenReads: Set<FrozenRead>;
  /** A copy failed and the write was made all the same: the snapshot is no more. */
  broken: boolean;
}

type CbwNode = BlockNode<CbwState>;

interface CbwOptions {
  readonly bitmap?: { readonly node: string; readonly name: string };
  readonly 'on-cbw-error'?: 'break-guest-write' | 'break-snapshot';
  readonly 'cbw-timeout'?: number;
  readonly 'min-cluster-size'?: number;
}

function sourceOf(node: BlockNode): BlockNode {
  return node.child('file')!.node;
}

function targetOf(node: BlockNode): BlockNode {
  return node.child('target')!.node;
}

async function open(opening: CbwNode, context: OpenContext): Promise<CbwState> {
  // The contract's nodes are of unknown state.
  const node = opening as unknown as BlockNode;
  const options = context.options as CbwOptions;
  await context.openChild('file', Role.filtered | Role.primary, true);
  await context.openChild('target', Role.data, true);
  const { bitmap: wanted } = options;
  const bitmap = wanted === undefined ? null : lookUpBitmap(node.layer, wanted.node, wanted.name);
  const source = sourceOf(node);
  const target = targetOf(node);
  const clusterBytes = await copyClusterBytes(node.layer, target, options['min-cluster-size'] ?? 0);
  node.totalBytes = source.totalBytes;
  const makeBitmap = (on: BlockNode): DirtyBitmap =>
    createBitmap(on, { name: null, granularityBytes: clusterBytes, enabled: false });
  const dirty = makeBitmap(source);
  const done = makeBitmap(node);
  const access = makeBitmap(node);
  try {
    if (bitmap !== null) checkMergeable(dirty, bitmap);
  } catch (error) {
    for (const each of [dirty, done, access]) releaseBitmap(each);
    throw new BlockError(
      `Cannot create block-copy-state: Failed to merge bitmap '${wanted?.name}' to internal copy-bitmap: ` +
        reasonOf(error),
    );
  }
  for (const each of [dirty, access]) {
    if (bitmap === null) setDirty(each, 0, node.totalBytes);
    else mergeBitmap(each, bitmap);
  }
  const copy = createBlockCopy({
    source: () => sourceOf(node),
    target: () => targetOf(node),
    clusterBytes,
    totalBytes: node.totalBytes,
    dirty: dirty.bits,
    // Readers of a target that shows the source where it has nothing must not see a cluster change under them.
    writeFlags: isInChain(target, source) ? Req.serialising : 0,
  });
  return {
    copy,
    breakSnapshot: options['on-cbw-error'] === 'break-snapshot',
    timeoutMs: (options['cbw-timeout'] ?? 0) * 1000,
    dirty,
    access,
    done,
    frozenReads: new Set(),
    broken: false,
  };
}

async function close({ state }: CbwNode): Promise<void> {
  for (const bitmap of [state.dirty, state.done, state.access]) releaseBitmap(bitmap);
}

// ---- before a change -----------------------------------------------------------------------------------------

function firstCluster({ copy }: CbwState, offset: number): number {
  return Math.floor(offset / copy.clusterBytes);
}

function endCluster({ copy }: CbwState, offset: number): number {
  return Math.ceil(offset / copy.clusterBytes);
}

/** Whether the range may be changed at once: it has been changed before, and no read of what was there goes on. */
function isFree(state: CbwState, offset: number, bytes: number): boolean {
  if (bytes === 0) return true;
  if (state.frozenReads.size > 0) return false;
  if (state.broken) return true;
  return state.done.bits.nextClear(firstCluster(state, offset), endCluster(state, offset + bytes)) < 0;
}

/** Runs `change` when the old content of the range is safe. */
function afterCopy(
  node: CbwNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  flags: number,
  change: () => Promise<void>,
): Promise<void> {
  if ((flags & Req.writeUnchanged) !== 0 || isFree(node.state, offset, bytes)) return change();
  return preserve(node, guard, offset, bytes).then(change);
}

async function preserve(node: CbwNode, guard: GraphReadGuard, offset: number, bytes: number): Promise<void> {
  const { state } = node;
  const first = firstCluster(state, offset);
  const end = endCluster(state, offset + bytes);
  if (!state.broken && needsCopy(state.copy, offset, bytes)) {
    const error = await copyInTime(node, guard, offset, bytes);
    const { isGivenUp } = state.copy;
    if (error !== 0 && !state.breakSnapshot && !isGivenUp) throw ioError(error);
    if (error !== 0 || isGivenUp) state.broken = true;
    if (error !== 0 && !isGivenUp) breakCopy(state.copy, error);
  }
  if (!state.broken) state.done.bits.set(first, end);
  const { graphLock } = node.layer;
  for (;;) {
    const read = [...state.frozenReads].find((each) => each.first < end && first < each.end);
    if (read === undefined) return;
    await graphLock.suspended(guard, () => read.ended.wait());
  }
}

/** Copies what is left of the range; errno, 0 when all is well. */
async function copyInTime(
  node: CbwNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<number> {
  const { copy, timeoutMs } = node.state;
  if (timeoutMs === 0) {
    const failure = await copyClusters(copy, guard, offset, bytes);
    return failure === null ? 0 : errnoOf(failure.error);
  }
  // The copy may outlive the write: it has a hold of its own on the lock and on the node.
  const { graphLock } = node.layer;
  let isWanted = true;
  node.inFlight++;
  const copied = graphLock
    .detached(guard, (own) => copyClusters(copy, own, offset, bytes, () => isWanted))
    .then((failure) => {
      node.inFlight--;
      if (node.inFlight === 0) node.idle.wakeAll();
      return failure === null ? 0 : errnoOf(failure.error);
    });
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<number>((resolve) => {
    timer = setTimeout(() => resolve(E.ETIMEDOUT), timeoutMs);
  });
  const error = await graphLock.suspended(guard, () => Promise.race([copied, late]));
  isWanted = false;
  clearTimeout(timer);
  return error;
}

// ---- the snapshot --------------------------------------------------------------------------------------------

interface SnapshotPart {
  readonly bytes: number;
  readonly place: BlockNode;
  /** Ends a read from `file`. */
  end(): void;
}

/** Where the snapshot has the start of the range, and how much of it; to be ended. */
function snapshotPart(node: CbwNode, offset: number, bytes: number): SnapshotPart {
  const { state } = node;
  const { clusterBytes } = state.copy;
  const first = firstCluster(state, offset);
  const end = endCluster(state, offset + bytes);
  if (state.broken || state.access.bits.nextClear(first, end) >= 0) throw ioError(E.EACCES);
  const { bits } = state.done;
  const isDone = bits.get(first);
  const change = isDone ? bits.nextClear(first, end) : bits.nextSet(first, end);
  const until = change < 0 ? offset + bytes : change * clusterBytes;
  const length = until - offset;
  const plain = node as unknown as BlockNode;
  if (isDone) return { bytes: length, place: targetOf(plain), end: () => undefined };
  const read: FrozenRead = { first, end: endCluster(state, until), ended: new CoQueue() };
  state.frozenReads.add(read);
  return {
    bytes: length,
    place: sourceOf(plain),
    end: () => {
      state.frozenReads.delete(read);
      read.ended.wakeAll();
    },
  };
}

async function preadvSnapshot(
  node: CbwNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  for (let at = 0; at < bytes; ) {
    const part = snapshotPart(node, offset + at, bytes - at);
    try {
      await co.preadv(part.place, guard, offset + at, part.bytes, sliceVector(vec, at, part.bytes), 0);
    } finally {
      part.end();
    }
    at += part.bytes;
  }
}

/** Whole clusters of the range are given up: they need not be copied any more, and cannot be read. */
async function pdiscardSnapshot(
  node: CbwNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  const { copy, access } = node.state;
  const first = Math.ceil(offset / copy.clusterBytes);
  const isEnd = offset + bytes >= copy.totalBytes;
  const end = isEnd ? access.bits.length : Math.floor((offset + bytes) / copy.clusterBytes);
  if (end <= first) return;
  access.bits.reset(first, end);
  copy.dirty.reset(first, end);
  const from = first * copy.clusterBytes;
  const to = Math.min(end * copy.clusterBytes, copy.totalBytes);
  await co.pdiscard(targetOf(node as unknown as BlockNode), guard, from, to - from);
}

/** What a filter of this driver has to copy. For jobs, which copy along. */
export function copyOfFilter(filter: BlockNode): BlockCopy {
  assert(filter.driver.name === 'copy-before-write', `node '${filter.name}' does not copy before writes`);
  return (filter as unknown as CbwNode).state.copy;
}

// ---- the driver ----------------------------------------------------------------------------------------------

export const copyBeforeWrite: BlockDriver<CbwState> = {
  name: 'copy-before-write',
  kind: 'filter',
  supportedWriteFlags: Req.fua | Req.writeUnchanged,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  open,
  close,
  exactFilename: (node) => nodeFilename(node.children[0]!.node),
  childPermissions(node, roles, wanted) {
    if ((roles & Role.filtered) === 0) {
      // The target may be below what the guest writes to. Its length is looked at once.
      return { perm: Perm.write, shared: Perm.all & ~Perm.resize };
    }
    if (node.parents.length === 0) return wanted;
    // A user that writes makes the filter read what is there before.
    const read = (wanted.perm & Perm.write) !== 0 ? Perm.consistentRead : 0;
    // Before `state` is there the node is being opened and has no users.
    const discard = (node.state as CbwState | undefined)?.copy.discardSource === true ? Perm.write : 0;
    return { perm: wanted.perm | read | discard, shared: wanted.shared & ~(Perm.write | Perm.resize) };
  },
  tryPreadv: (node, guard, offset, bytes, vec, short) =>
    sync.tryPreadv(node.children[0]!.node, guard, offset, bytes, vec, short),
  tryPwritev(node, guard, offset, bytes, vec, short) {
    if (!isFree(node.state, offset, bytes)) return false;
    return sync.tryPwritev(node.children[0]!.node, guard, offset, bytes, vec, short);
  },
  preadv: (node, guard, offset, bytes, vec, flags) =>
    co.preadv(node.children[0]!.node, guard, offset, bytes, vec, flags),
  pwritev: (node, guard, offset, bytes, vec, flags) =>
    afterCopy(node, guard, offset, bytes, flags, () =>
      co.pwritev(node.children[0]!.node, guard, offset, bytes, vec, flags),
    ),
  pwriteZeroes: (node, guard, offset, bytes, flags) =>
    afterCopy(node, guard, offset, bytes, flags, () =>
      co.pwriteZeroes(node.children[0]!.node, guard, offset, bytes, flags),
    ),
  pdiscard: (node, guard, offset, bytes) =>
    afterCopy(node, guard, offset, bytes, 0, () => co.pdiscard(node.children[0]!.node, guard, offset, bytes)),
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return { bytes, flags: Status.offsetValid | Status.recurse, map: offset, file: node.children[0]!.node };
  },
  preadvSnapshot,
  async blockStatusSnapshot(node, guard, wantZero, offset, bytes) {
    const part = snapshotPart(node, offset, bytes);
    try {
      return await blockStatusAbove(part.place, guard, null, wantZero, offset, part.bytes);
    } finally {
      part.end();
    }
  },
  pdiscardSnapshot,
};
