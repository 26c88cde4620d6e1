/**
 * The commit job: what the images from `top` down to the one above `base` hold is copied into `base`, and then the
 * overlays of `top` do without these images.
 *
 * This is the commit of images that nobody writes to: `top` has an overlay. A filter on `top` is there as long as the job
 * runs, and the chain is frozen. What is copied lies in `base` under what `top` and the others show in the same place, so
 * the overlays' users never see a change. The overlays' links change when all is on stable storage.
 */

import type { BlockdevOnError } from '../../../schema/generated/types.ts';
import type { BlockBackend } from '../../block/backend.ts';
import { Perm, Role, Status } from '../../block/contract/request.ts';
import {
  allZeroes,
  createMover,
  moveExtent,
  moveOneTurn,
  updateUseOfKernel,
} from '../../block/copy/mover.ts';
import { chainEdges, showsContentOf } from '../../block/graph/chain.ts';
import { changeGraph, freezeEdges } from '../../block/graph/change.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { wrapped } from '../../block/io/callbacks.ts';
import { blockStatusAbove } from '../../block/io/status-chain.ts';
import { backingNameOf, writeBackingName } from '../../block/open/backing-image.ts';
import { commitTop } from '../../drivers/filters/commit-top.ts';
import {
  addJobNode,
  type BlockJob,
  createBlockJob,
  discardBlockJob,
  giveUpNode,
  removeJobNodes,
  startBlockJob,
} from '../block-job.ts';
import { CHUNK_BYTES, copyChain } from '../chain-copy.ts';
import type { Job, JobDriver, JobOptions, JobTable } from '../job-common.ts';
import { letCommandReturn, setRemainingProgress } from '../job-driver.ts';
import { insertFilter, releaseFilter, removeFilter, takeOutFilter } from '../job-filter.ts';
import { makeWritable } from '../writable.ts';

export interface CommitOptions extends Omit<JobOptions, 'driver' | 'observer'> {
  /** The top of the whole chain, above `top`. */
  readonly device: BlockNode;
  /** The first image that goes. */
  readonly top: BlockNode;
  /** The image that takes the data, below `top`. */
  readonly base: BlockNode;
  /** What the overlays of `top` are to say of their backing file; null: the name of `base`. */
  readonly backingFile: string | null;
  /** It says raw instead of the name of a protocol. */
  readonly maskProtocol: boolean;
  /** Bytes a second; 0: no limit. */
  readonly speed: number;
  readonly onError: BlockdevOnError;
  /** Null: it gets a name. */
  readonly filterName: string | null;
}

interface Commit extends CommitOptions {
  filter: BlockNode | null;
  /** Make the nodes that were opened for writing read-only again, in this order. */
  readonly readOnlyAgain: (() => Promise<void>)[];
  /** What writes to the base; null before the job has its nodes. */
  writer: BlockBackend | null;
  /** Lets the chain be changed again; null when it may be. */
  unfreeze: (() => void) | null;
}

/** Starts the job and waits until the command may be answered. */
export async function startCommit(table: JobTable, options: CommitOptions): Promise<Job> {
  const { top, base, filterName } = options;
  const commit: Commit = { ...options, filter: null, readOnlyAgain: [], writer: null, unfreeze: null };
  const driver = commitDriver(commit);
  const block = await createBlockJob(table, { ...options, driver, nodes: [] });
  try {
    await openForWriting(commit, base);
    for (const overlay of overlaysOf(top)) await openForWriting(commit, overlay);
    commit.filter = await insertFilter(top, {
      driver: commitTop,
      name: filterName,
      edge: 'backing',
      readOnly: true,
    });
    await takeNodes(block, commit);
    commit.unfreeze = freezeEdges(chainEdges(commit.filter, base));
  } catch (error) {
    await removeJobNodes(block);
    await restore(commit);
    await readOnlyAgain(commit);
    await discardBlockJob(block);
    throw error;
  }
  startBlockJob(block);
  await block.job.whenDetached;
  return block.job;
}

/** The nodes whose backing image `node` is. */
function overlaysOf(node: BlockNode): BlockNode[] {
  return node.parents.flatMap(({ parent, roles }) =>
    parent.kind === 'node' && (roles & Role.cow) !== 0 ? [parent.node] : [],
  );
}

async function openForWriting(commit: Commit, node: BlockNode): Promise<void> {
  const undo = await makeWritable(node);
  if (undo !== null) commit.readOnlyAgain.push(undo);
}

async function readOnlyAgain(commit: Commit): Promise<void> {
  for (const undo of commit.readOnlyAgain.splice(0).reverse()) await undo();
}

/** Takes what the job needs of its nodes. */
async function takeNodes(block: BlockJob, commit: Commit): Promise<void> {
  const { device, top, base } = commit;
  const nothing = { perm: 0, shared: Perm.all };
  const users = Perm.consistentRead | Perm.writeUnchanged;
  await addJobNode(block, { name: 'main node', node: device, permissions: nothing });
  // What is in between reads right from above only: `base` changes below it. Filters on `base` show what it holds.
  for (const { node } of [{ node: top }, ...chainEdges(top, base)].filter((edge) => edge.node !== base)) {
    const read = showsContentOf(node, base) ? Perm.consistentRead : 0;
    await addJobNode(block, {
      name: 'intermediate node',
      node,
      permissions: { perm: 0, shared: Perm.writeUnchanged | Perm.write | read },
    });
  }
  await addJobNode(block, { name: 'base', node: base, permissions: nothing });
  const grow = base.totalBytes < top.totalBytes ? Perm.resize : 0;
  const write = { perm: Perm.write | Perm.consistentRead | grow, shared: users };
  commit.writer = await addJobNode(block, {
    name: 'root',
    node: base,
    permissions: write,
    isAnonymous: true,
  });
  await addJobNode(block, { name: 'root', node: top, permissions: nothing, isAnonymous: true });
}

function commitDriver(commit: Commit): JobDriver {
  return {
    type: 'commit',
    run: (job) => copyAll(commit, job),
    prepare: (job) => finish(commit, job.block!),
    abort: async (job) => {
      // Without the filter users read the images in between directly, which the job does not let them.
      await removeJobNodes(job.block!);
      await restore(commit);
    },
    clean: async (job) => {
      await removeJobNodes(job.block!);
      await readOnlyAgain(commit);
    },
  };
}

async function copyAll({ top, base, onError }: Commit, job: Job): Promise<void> {
  setRemainingProgress(job, top.totalBytes);
  await letCommandReturn(job);
  if (base.totalBytes < top.totalBytes) await wrapped.truncate(base, top.totalBytes, false, 'off', false);
  const { graphLock } = top.layer;
  const mover = createMover({
    source: () => top,
    target: () => base,
    clusterBytes: base.limits.requestAlignment,
    bufferBytes: CHUNK_BYTES,
    findZeroes: allZeroes,
    peeks: true,
    isFlushed: true,
  });
  await copyChain({
    block: job.block!,
    lengthBytes: top.totalBytes,
    onError,
    ignored: 'retry',
    next: (offset, bytes) =>
      graphLock.withRead(async (guard) => {
        const found = await blockStatusAbove(top, guard, base, false, offset, bytes);
        return {
          bytes: found.bytes || bytes,
          copy: found.bytes === 0 || (found.flags & Status.allocated) !== 0,
        };
      }),
    copyNow: (offset, bytes) =>
      graphLock.readNow((guard) => {
        updateUseOfKernel(mover, guard);
        return moveOneTurn(mover, guard, offset, bytes);
      }) ?? 0,
    copy: (offset, bytes) =>
      graphLock.withRead((guard) => {
        updateUseOfKernel(mover, guard);
        return moveExtent(mover, guard, offset, bytes, 'data');
      }),
  });
}

/** The overlays of `top` get `base` as their backing image, in the images first. */
async function finish(commit: Commit, block: BlockJob): Promise<void> {
  const { base, backingFile, maskProtocol } = commit;
  const filter = commit.filter!;
  commit.unfreeze?.();
  commit.unfreeze = null;
  await wrapped.flush(base);
  // All is written. The overlays, and what else has become a user of theirs meanwhile, let nobody write below them.
  if (commit.writer !== null) await giveUpNode(block, commit.writer);
  commit.writer = null;
  for (const overlay of overlaysOf(filter))
    await writeBackingName(overlay, backingNameOf(base, backingFile, maskProtocol));
  await changeGraph(base.layer, [filter, base], (graph) => takeOutFilter(graph, filter, base));
  commit.filter = null;
  await releaseFilter(filter);
}

async function restore(commit: Commit): Promise<void> {
  const { filter } = commit;
  commit.unfreeze?.();
  commit.unfreeze = null;
  commit.filter = null;
  if (filter !== null) await removeFilter(filter);
}
