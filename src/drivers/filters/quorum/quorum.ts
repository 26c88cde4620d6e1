/**
 * quorum: one disk on several children. Writes go to all of them, and what a read gives is voted on.
 *
 * A request succeeds when at least `vote-threshold` children agree. Which child was in the minority, or failed, is told
 * by events. `read-pattern=fifo` asks one child after another instead; `rewrite-corrupted` writes the voted content to
 * the children that had something else; `blkverify` ends the process at the first difference between two children.
 * Children can be added and removed at run time.
 * Source of the facts: QMP reference, BlockdevOptionsQuorum, QUORUM_FAILURE, QUORUM_REPORT_BAD; its behaviour.
 */

import { allocateIoMemory, copyToVector, type IoVector, vectorOf } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { Perm, Req, Role, Status } from '../../../block/contract/request.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import {
  beginTracked,
  createTrackedList,
  endTracked,
  markSerialising,
  type TrackedList,
  waitSerialising,
} from '../../../block/graph/tracked.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E, strerror } from '../../../errors/errno.ts';
import { BlockError, errnoOf, ioError } from '../../../errors/error.ts';
import { contentOf, firstDifference } from '../compare.ts';
import { countContents, type Version, votedErrno, winnerOf } from './vote.ts';

interface QuorumState {
  readonly threshold: number;
  readonly isBlkverify: boolean;
  readonly rewritesCorrupted: boolean;
  readonly readsInTurn: boolean;
  /** Number in the name of the next child. */
  nextIndex: number;
  /** Writes, and reads whose children did not agree: those wait for writes to be the same everywhere. */
  readonly tracked: TrackedList;
}

type QuorumNode = BlockNode<QuorumState>;

const SECTOR_BYTES = 512;
const DATA_ROLES = Role.data;

async function open(_node: QuorumNode, context: OpenContext): Promise<QuorumState> {
  const { options } = context;
  const given = options.children;
  const list = typeof given === 'object' && given !== null ? Object.values(given) : [];
  // From names and tools the children come by number.
  if (list.some((_, index) => !Object.hasOwn(given as object, index)))
    throw new BlockError('Option children is not a valid array');
  if (list.length === 0) throw new BlockError('Number of provided children must be 1 or more');
  const threshold = Number(options['vote-threshold'] ?? 0);
  if (threshold < 1) throw new BlockError("Parameter 'vote-threshold' expects a value >= 1");
  if (threshold > list.length) throw new BlockError('threshold may not exceed children count');
  const pattern = options['read-pattern'] ?? 'quorum';
  if (pattern !== 'fifo' && pattern !== 'quorum')
    throw new BlockError('Please set read-pattern as fifo or quorum');
  const readsInTurn = pattern === 'fifo';
  const isBlkverify = !readsInTurn && options.blkverify === true;
  const rewritesCorrupted = !readsInTurn && options['rewrite-corrupted'] === true;
  if (isBlkverify && (list.length !== 2 || threshold !== 2)) {
    throw new BlockError(
      'blkverify=on can only be set if there are exactly two files and vote-threshold is 2',
    );
  }
  if (isBlkverify && rewritesCorrupted)
    throw new BlockError('rewrite-corrupted=on cannot be used with blkverify=on');
  for (const [index, reference] of list.entries())
    await context.openChild(`children.${index}`, DATA_ROLES, true, reference);
  return {
    threshold,
    isBlkverify,
    rewritesCorrupted,
    readsInTurn,
    nextIndex: list.length,
    tracked: createTrackedList(),
  };
}

// ---- events --------------------------------------------------------------------------------------------------

/** First sector and number of sectors that a range touches. */
function sectorsOf(offset: number, bytes: number): { readonly first: number; readonly count: number } {
  const first = Math.floor(offset / SECTOR_BYTES);
  return { first, count: Math.ceil((offset + bytes) / SECTOR_BYTES) - first };
}

/** Tells of a child that failed, or (errno 0) had content of its own. */
function reportBad(
  node: QuorumNode,
  type: 'read' | 'write' | 'flush',
  child: BlockNode,
  offset: number,
  bytes: number,
  errno: number,
): void {
  const { first, count } = sectorsOf(offset, bytes);
  node.layer.events.emit('QUORUM_REPORT_BAD', {
    type,
    ...(errno !== 0 && { error: strerror(errno) }),
    'node-name': child.name,
    'sector-num': first,
    'sectors-count': count,
  });
}

function reportFailure(node: QuorumNode, offset: number, bytes: number): void {
  const { first, count } = sectorsOf(offset, bytes);
  node.layer.events.emit('QUORUM_FAILURE', {
    reference: node.name,
    'sector-num': first,
    'sectors-count': count,
  });
}

// ---- requests ------------------------------------------------------------------------------------------------

/** Runs the request on every child and waits for all: 0 or the errno of each. `failed` is told as they come. */
function onAll(
  node: QuorumNode,
  request: (child: BlockNode, index: number) => Promise<void>,
  failed: (child: BlockNode, errno: number) => void,
): Promise<readonly number[]> {
  return Promise.all(
    node.children.map(async ({ node: child }, index) => {
      try {
        await request(child, index);
        return 0;
      } catch (error) {
        const errno = errnoOf(error);
        failed(child, errno);
        return errno;
      }
    }),
  );
}

function successes(errnos: readonly number[]): number {
  return errnos.filter((errno) => errno === 0).length;
}

/** A write of any kind: it has succeeded when enough children have it. */
async function writeAll(
  node: QuorumNode,
  offset: number,
  bytes: number,
  request: (child: BlockNode) => Promise<void>,
): Promise<void> {
  const { tracked, threshold } = node.state;
  const record = beginTracked(tracked, offset, bytes, 'other');
  let errnos: readonly number[];
  try {
    if (tracked.serialising > 0) await waitSerialising(tracked, record);
    errnos = await onAll(node, request, (child, errno) =>
      reportBad(node, 'write', child, offset, bytes, errno),
    );
  } finally {
    endTracked(tracked, record);
  }
  if (successes(errnos) >= threshold) return;
  reportFailure(node, offset, bytes);
  throw ioError(votedErrno(errnos));
}

/** Reads from one child after another until one gives something. */
async function readInTurn(
  node: QuorumNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  let last: unknown = ioError(E.EIO);
  for (const { node: child } of node.children) {
    try {
      return await co.preadv(child, guard, offset, bytes, vec, flags);
    } catch (error) {
      last = error;
      reportBad(node, 'read', child, offset, bytes, errnoOf(error));
    }
  }
  throw last;
}

/**
 * Reads from all and lets them vote. Where they do not agree a write may be under way, which some have and others have
 * not: they are asked again when there is none, and kept free of others until the losers have been dealt with.
 */
async function readVoted(
  node: QuorumNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const reported = new Set<BlockNode>();
  const first = await poll(node, guard, offset, bytes, vec, flags, reported);
  if (first.length === 1) {
    take(vec, first[0]!.value);
    return;
  }
  const { tracked } = node.state;
  const record = beginTracked(tracked, offset, bytes, 'other');
  try {
    markSerialising(tracked, record, 1);
    await waitSerialising(tracked, record);
    const versions = await poll(node, guard, offset, bytes, vec, flags, reported);
    await decide(node, guard, versions, offset, bytes, vec);
  } finally {
    endTracked(tracked, record);
  }
}

/**
 * What the children have, by content. The first reads into `vec`: mostly that is the result. `reported`: children of
 * whose failure this request has told already.
 */
async function poll(
  node: QuorumNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
  reported: Set<BlockNode>,
): Promise<readonly Version<IoVector>[]> {
  const contents = node.children.map((_, index) =>
    index === 0 ? vec : vectorOf(allocateIoMemory(bytes), 0, bytes),
  );
  const errnos = await onAll(
    node,
    (child, index) => co.preadv(child, guard, offset, bytes, contents[index]!, flags),
    (child, errno) => {
      if (!reported.has(child)) reportBad(node, 'read', child, offset, bytes, errno);
      reported.add(child);
    },
  );
  if (successes(errnos) < node.state.threshold) {
    reportFailure(node, offset, bytes);
    throw ioError(votedErrno(errnos));
  }
  return countContents(
    contents.map((value, child) => ({ child, value })).filter(({ child }) => errnos[child] === 0),
  );
}

function take(vec: IoVector, content: IoVector): void {
  if (content !== vec) copyToVector(vec, contentOf(content));
}

/** Lets the version with most votes win, and tells of the others. */
async function decide(
  node: QuorumNode,
  guard: GraphReadGuard,
  versions: readonly Version<IoVector>[],
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { state } = node;
  if (state.isBlkverify && versions.length > 1) {
    const at = offset + firstDifference(versions[0]!.value, versions[1]!.value);
    node.layer.fatal(`quorum: offset=${offset} bytes=${bytes} contents mismatch at offset ${at}\n`);
  }
  const winner = winnerOf(versions)!;
  if (winner.ballots.length < state.threshold) {
    reportFailure(node, offset, bytes);
    throw ioError(E.EIO);
  }
  const losers = versions
    .filter((version) => version !== winner)
    .reverse()
    .flatMap((version) => version.ballots.toReversed())
    .map(({ child }) => node.children[child]!.node);
  for (const loser of losers) reportBad(node, 'read', loser, offset, bytes, 0);
  take(vec, winner.value);
  if (!state.rewritesCorrupted) return;
  // One that cannot take it is met again by the next read.
  await Promise.allSettled(losers.map((loser) => co.pwritev(loser, guard, offset, bytes, vec, 0)));
}

export const quorum: BlockDriver<QuorumState> = {
  name: 'quorum',
  kind: 'format',
  supportedWriteFlags: Req.writeUnchanged,
  supportedZeroFlags: Req.mayUnmap | Req.noFallback | Req.writeUnchanged,
  strongOptions: ['vote-threshold', 'blkverify', 'rewrite-corrupted', 'read-pattern'],
  noPlace: 'Cannot generate a base directory for quorum nodes',
  open,
  exactFilename: () => null,
  childPermissions(node, _roles, { perm, shared }) {
    // Before `state` is there the node is being opened.
    const rewrites = (node.state as QuorumState | undefined)?.rewritesCorrupted === true;
    // Children that others write to, or that get another length, would differ from the rest.
    return {
      perm: rewrites ? perm | Perm.write : perm,
      shared: shared & (Perm.consistentRead | Perm.writeUnchanged),
    };
  },
  childList: {
    checkAdd({ state }) {
      if (state.isBlkverify) throw new BlockError('Cannot add a child to a quorum in blkverify mode');
      return { name: `children.${state.nextIndex}`, roles: DATA_ROLES };
    },
    checkRemove(node) {
      const { threshold } = node.state;
      if (node.children.length <= threshold) {
        throw new BlockError(`The number of children cannot be lower than the vote threshold ${threshold}`);
      }
    },
    added({ state }) {
      state.nextIndex++;
    },
    removed({ state }, { name }: BlockChild) {
      if (name === `children.${state.nextIndex - 1}`) state.nextIndex--;
    },
  },
  preadv(node, guard, offset, bytes, vec, flags) {
    const read = node.state.readsInTurn ? readInTurn : readVoted;
    return read(node, guard, offset, bytes, vec, flags);
  },
  pwritev(node, guard, offset, bytes, vec, flags) {
    return writeAll(node, offset, bytes, (child) => co.pwritev(child, guard, offset, bytes, vec, flags));
  },
  pwriteZeroes(node, guard, offset, bytes, flags) {
    return writeAll(node, offset, bytes, (child) => co.pwriteZeroes(child, guard, offset, bytes, flags));
  },
  flushesChildren: true,
  async flush(node, guard) {
    const errnos = await onAll(
      node,
      (child) => co.flush(child, guard),
      (child, errno) => reportBad(node, 'flush', child, 0, 0, errno),
    );
    if (successes(errnos) < node.state.threshold) throw ioError(votedErrno(errnos));
  },
  async blockStatus(node, guard, wantZero, offset, bytes) {
    let zeroBytes = bytes;
    let dataBytes = 0;
    for (const { node: child } of node.children) {
      let status: { readonly bytes: number; readonly flags: number };
      try {
        status = await co.blockStatus(child, guard, wantZero, offset, bytes);
      } catch (error) {
        reportBad(node, 'read', child, offset, bytes, errnoOf(error));
        status = { bytes, flags: Status.data };
      }
      // A child that ends before the others has nothing to say.
      if (status.bytes === 0) status = { bytes, flags: Status.data };
      if ((status.flags & Status.zero) !== 0) zeroBytes = Math.min(zeroBytes, status.bytes);
      else dataBytes = Math.max(dataBytes, status.bytes);
    }
    return dataBytes > 0
      ? { bytes: dataBytes, flags: Status.data, map: 0, file: null }
      : { bytes: zeroBytes, flags: Status.zero, map: 0, file: null };
  },
  async getLength(node) {
    const lengths = new Set(node.children.map((edge) => edge.node.totalBytes));
    if (lengths.size !== 1) throw ioError(E.EIO);
    return [...lengths][0]!;
  },
  async getInfo() {
    throw ioError(E.ENOTSUP);
  },
  async getAllocatedFileSize(node, guard) {
    let total = 0;
    for (const { node: child } of node.children) total += await co.getAllocatedFileSize(child, guard);
    return total;
  },
};
