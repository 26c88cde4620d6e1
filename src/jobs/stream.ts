/**
 * The stream job: what backing images hold is copied into an overlay, and then the overlay does without them.
 *
 * The images from the overlay's backing image down to `bottom` go; what is below stays as the backing image. A filter on
 * the overlay is there as long as the job runs, and the chain is frozen. Copying is copy on read (io/copy-on-read.ts):
 * what users see never changes. The overlay's link to its backing image changes when all has been copied and is on
 * stable storage, so until then, whatever happens, all is as before.
 */

import type { BlockdevOnError } from '../../schema/generated/types.ts';
import { allocateIoMemory } from '../aio/memory.ts';
import { Perm, Status } from '../block/contract/request.ts';
import { type CopyFailure, IN_TURN_BYTES } from '../block/copy/mover.ts';
import { createTurnTaking, takeTurn } from '../block/copy/turn-taking.ts';
import { countWritten } from '../block/copy/written.ts';
import { chainChild, chainEdges, cowChild, skipFilters } from '../block/graph/chain.ts';
import { changeGraph, freezeEdges } from '../block/graph/change.ts';
import type { BlockNode } from '../block/graph/node.ts';
import { checkOperation } from '../block/graph/op-blockers.ts';
import { coClusterBytes, coCopyOnRead, copyOnReadNow } from '../block/io/copy-on-read.ts';
import { blockStatusAbove } from '../block/io/status-chain.ts';
import { backingNameOf, writeBackingName } from '../block/open/backing-image.ts';
import { streamFilter } from '../drivers/filters/stream-filter.ts';
import { BlockError } from '../errors/error.ts';
import { type BlockJob, createBlockJob, type JobNode, removeJobNodes, startBlockJob } from './block-job.ts';
import { copyChain, type Extent } from './chain-copy.ts';
import type { Job, JobDriver, JobOptions, JobTable } from './job-common.ts';
import { letCommandReturn, setRemainingProgress } from './job-driver.ts';
import { insertFilter, releaseFilter, removeFilter, takeOutFilter } from './job-filter.ts';
import { makeWritable } from './writable.ts';

export interface StreamOptions extends Omit<JobOptions, 'driver' | 'observer'> {
  /** The overlay, or a filter on it. */
  readonly device: BlockNode;
  /** The last node that goes, in the chain of the overlay; the overlay itself: none goes. */
  readonly bottom: BlockNode;
  /** What the overlay is to say of its backing file; null: its name. */
  readonly backingFile: string | null;
  /** It says raw instead of the name of a protocol. */
  readonly maskProtocol: boolean;
  /** Bytes a second; 0: no limit. */
  readonly speed: number;
  readonly onError: BlockdevOnError;
  /** Null: it gets a name. */
  readonly filterName: string | null;
}

interface Stream extends StreamOptions {
  readonly overlay: BlockNode;
  readonly readOnlyAgain: (() => Promise<void>) | null;
  /** Null when it is not in the graph. */
  filter: BlockNode | null;
  /** Lets the chain be changed again; null when it may be. */
  unfreeze: (() => void) | null;
}

/** Starts the job and waits until the command may be answered. */
export async function startStream(table: JobTable, options: StreamOptions): Promise<Job> {
  const { device, bottom } = options;
  const overlay = skipFilters(device);
  const base = chainChild(bottom)?.node ?? null;
  for (const node of nodesBetween(device, base)) checkOperation(node, 'stream');
  const readOnlyAgain = await makeWritable(overlay);
  const stream: Stream = { ...options, overlay, filter: null, readOnlyAgain, unfreeze: null };
  let block: BlockJob;
  try {
    stream.filter = await insert(options);
    const driver = streamDriver(stream);
    block = await createBlockJob(table, { ...options, driver, nodes: jobNodes(stream, stream.filter, base) });
    stream.unfreeze = freezeEdges(chainEdges(device, bottom));
  } catch (error) {
    await restore(stream);
    await readOnlyAgain?.();
    throw error;
  }
  startBlockJob(block);
  await block.job.whenDetached;
  return block.job;
}

async function insert({ device, filterName }: StreamOptions): Promise<BlockNode> {
  try {
    return await insertFilter(device, {
      driver: streamFilter,
      name: filterName,
      edge: 'file',
      readOnly: device.readOnly,
    });
  } catch (error) {
    throw error instanceof BlockError ? new BlockError(`Could not create node: ${error.message}`) : error;
  }
}

/** The nodes of a chain from `top` to the one above `end`. */
function nodesBetween(top: BlockNode, end: BlockNode | null): BlockNode[] {
  return [top, ...chainEdges(top, end).map((edge) => edge.node)].filter((node) => node !== end);
}

function jobNodes({ device, overlay }: Stream, filter: BlockNode, base: BlockNode | null): JobNode[] {
  const users = Perm.consistentRead | Perm.writeUnchanged | Perm.write;
  const below = chainChild(overlay)?.node ?? base;
  const between = below === null || below === base ? [] : nodesBetween(below, base);
  return [
    {
      name: 'root',
      node: filter,
      permissions: { perm: Perm.consistentRead, shared: users },
      isAnonymous: true,
    },
    { name: 'main node', node: filter, permissions: { perm: 0, shared: Perm.all } },
    { name: 'active node', node: device, permissions: { perm: 0, shared: users } },
    ...between.map((node) => ({
      name: 'intermediate node',
      node,
      permissions: { perm: 0, shared: Perm.consistentRead | Perm.writeUnchanged },
    })),
  ];
}

function streamDriver(stream: Stream): JobDriver {
  return {
    type: 'stream',
    run: (job) => copyAll(stream, job),
    prepare: () => finish(stream),
    abort: () => restore(stream),
    clean: async (job) => {
      if (stream.readOnlyAgain === null) return;
      await removeJobNodes(job.block!);
      await stream.readOnlyAgain();
    },
  };
}

async function copyAll({ overlay, bottom, onError }: Stream, job: Job): Promise<void> {
  if (overlay === bottom || chainChild(overlay) === null) return;
  setRemainingProgress(job, overlay.totalBytes);
  await letCommandReturn(job);
  const { graphLock } = overlay.layer;
  const clusterBytes = await graphLock.withRead((guard) => coClusterBytes(overlay, guard));
  const turns = createTurnTaking();
  const memory = allocateIoMemory(IN_TURN_BYTES);
  const written = { bytes: 0 };
  await copyChain({
    block: job.block!,
    lengthBytes: overlay.totalBytes,
    onError,
    ignored: 'skip',
    next: (offset, bytes): Promise<Extent> =>
      graphLock.withRead(async (guard) => {
        // What is below the frozen chain may have changed.
        const base = chainChild(bottom)?.node ?? null;
        const status = await blockStatusAbove(overlay, guard, base, false, offset, bytes);
        // Of what ends within the turn nothing is known: it is looked at again when it is copied.
        const copy = status.bytes === 0 || ((status.flags & Status.allocated) !== 0 && status.depth > 0);
        return { bytes: status.bytes || bytes, copy };
      }),
    copyNow: (offset, bytes) => {
      // A piece that is not whole clusters was left by an extent that ends so.
      if (offset % clusterBytes !== 0) return 0;
      return (
        graphLock.readNow((guard) => {
          const done = takeTurn(turns, bytes, clusterBytes, (goesOn) =>
            copyOnReadNow(overlay, guard, offset, bytes, memory, goesOn),
          );
          countWritten(written, done, overlay);
          return done;
        }) ?? 0
      );
    },
    copy: async (offset, bytes): Promise<CopyFailure | null> => {
      try {
        await graphLock.withRead((guard) => coCopyOnRead(overlay, guard, offset, bytes));
        return null;
      } catch (error) {
        return { isRead: true, offset, error };
      }
    },
  });
}

/** The overlay gets its new backing image, in the image first. */
async function finish(stream: Stream): Promise<void> {
  const { overlay, bottom, device, backingFile, maskProtocol } = stream;
  const filter = stream.filter!;
  unfreeze(stream);
  const below = (): BlockNode | null => chainChild(bottom)?.node ?? null;
  const writeName = (base: BlockNode | null): Promise<void> =>
    writeBackingName(overlay, base === null ? null : backingNameOf(base, backingFile, maskProtocol));
  const before = below();
  let base = before;
  if (cowChild(overlay) !== null) await writeName(base);
  await changeGraph(overlay.layer, [filter, overlay], (graph) => {
    takeOutFilter(graph, filter, device);
    const link = cowChild(overlay);
    // Another job may have ended meanwhile and changed what is below.
    base = below();
    if (link === null) return;
    if (base === null) graph.detach(link);
    else graph.redirect(link, base);
  });
  if (base !== before) await writeName(base);
  stream.filter = null;
  await releaseFilter(filter);
}

async function restore(stream: Stream): Promise<void> {
  const { filter } = stream;
  unfreeze(stream);
  stream.filter = null;
  if (filter !== null) await removeFilter(filter);
}

function unfreeze(stream: Stream): void {
  stream.unfreeze?.();
  stream.unfreeze = null;
}
