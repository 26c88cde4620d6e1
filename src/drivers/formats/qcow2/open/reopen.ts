/**
 * Reopening: other options, and the change between read-only and read-write, of an image that is in use.
 *
 * Whatever is only in memory goes to the disk first, so the caches may be replaced and the file below may become
 * read-only. A node that becomes read-only leaves the image as a closing would: bitmaps stored, the dirty bit gone.
 */

import type { ReopenContext } from '../../../../block/contract/reopen.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError, reasonOf } from '../../../../errors/error.ts';
import { TableCache } from '../../shared/table-cache.ts';
import { markBitmapsInUse, storeBitmapsOrThrow } from '../bitmaps/bitmaps.ts';
import { Incompat } from '../layout/layout.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { barrier, writeHeader } from '../metadata/metadata-io.ts';
import { settleMetadata } from '../metadata/writeback.ts';
import { learnInactiveL2 } from '../snapshots/inactive-l2.ts';
import { afterOpen, startCleaning, stopCleaning } from './open.ts';
import { type CheckedOptions, checkOptions, type Qcow2Options, switches } from './options.ts';

interface Prepared {
  readonly checked: CheckedOptions;
  readonly options: Qcow2Options;
  readonly discardUnmap: boolean;
  readonly change: 'to-read-only' | 'to-read-write' | null;
  /** Length of the file below when it will be another one, in bytes; null when that does not grow with zeroes. */
  readonly newFileBytes: number | null | undefined;
}

/** Leaves the image as if nobody had it open; bitmaps are stored by others. */
export async function settle(node: Qcow2Node): Promise<void> {
  const s = node.state;
  await node.layer.graphLock.withRead(async (guard) => {
    await settleMetadata(node, guard);
    if ((s.header.incompatible & Incompat.dirty) === 0) return;
    // Refcounts are complete on the disk now.
    s.header.incompatible &= ~Incompat.dirty;
    await writeHeader(node, guard);
    await barrier(node, guard);
  });
}

export async function reopenPrepare(node: Qcow2Node, context: ReopenContext): Promise<Prepared> {
  const s = node.state;
  const options = context.options as Qcow2Options;
  const { readOnly, discardUnmap } = context.settings;
  const checked = checkOptions(options, s.header);
  if (node.readOnly && !readOnly && (s.header.incompatible & Incompat.corrupt) !== 0) {
    throw new BlockError('qcow2: Image is corrupt; cannot be opened read/write', { errno: E.EACCES });
  }
  const change = readOnly === node.readOnly ? null : readOnly ? 'to-read-only' : 'to-read-write';
  const file = context.child('file')!;
  const prepared: Prepared = {
    checked,
    options,
    discardUnmap,
    change,
    newFileBytes:
      file === s.file.node ? undefined : file.driver.growsWithZeroes === true ? file.totalBytes : null,
  };
  if (node.readOnly || s.dead) return prepared;
  try {
    if (change === 'to-read-only')
      await node.layer.graphLock.withRead((guard) => storeBitmapsOrThrow(node, guard));
    await settle(node);
  } catch (error) {
    await reopenAbort(node, prepared);
    throw error;
  }
  return prepared;
}

/** Makes the bitmaps this node's own again, which a node that becomes read-only has given up. */
export async function reopenAbort(node: Qcow2Node, prepared: unknown): Promise<void> {
  if ((prepared as Prepared).change !== 'to-read-only' || node.state.dead) return;
  try {
    await node.layer.graphLock.withRead((guard) => markBitmapsInUse(node, guard));
  } catch (error) {
    reportLostBitmaps(node, error);
  }
}

export function reopenCommit(node: Qcow2Node, what: unknown): void {
  const s = node.state;
  const { checked, options, discardUnmap, change, newFileBytes } = what as Prepared;
  Object.assign(s, switches(options, discardUnmap), { lazyRefcounts: checked.lazyRefcounts });
  replaceCaches(s, checked);
  stopCleaning(s);
  startCleaning(s, checked.cleanIntervalSeconds);
  if (newFileBytes !== undefined) {
    s.freshFrom = newFileBytes === null ? Number.POSITIVE_INFINITY : Math.ceil(newFileBytes / s.clusterBytes);
  }
  if (change === null) return;
  if (change === 'to-read-only') s.extras.bitmapsOwned = false;
  for (const bitmap of node.dirtyBitmaps.all) {
    if (bitmap.persistent && !bitmap.inconsistent) bitmap.readOnly = change === 'to-read-only';
  }
}

/** Nothing in the caches is newer than the disk. */
function replaceCaches(s: Qcow2State, { sizes }: CheckedOptions): void {
  if (s.l2Cache.tableBytes === sizes.sliceBytes) {
    s.l2Cache.capacity = sizes.l2Slices;
  } else {
    s.l2Cache = new TableCache(sizes.sliceBytes, sizes.l2Slices);
    s.sliceEntries = sizes.sliceBytes / s.l2EntryBytes;
  }
  s.refcountCache.capacity = sizes.refcountBlocks;
}

/** What the new options ask for, and what an opening for writing has to write. The node stays read-only when it cannot. */
export async function afterReopen(node: Qcow2Node, prepared: unknown): Promise<void> {
  await node.layer.graphLock.withRead((guard) => learnInactiveL2(node, guard));
  if ((prepared as Prepared).change !== 'to-read-write') return;
  try {
    await afterOpen(node);
  } catch (error) {
    node.readOnly = true;
    reportLostBitmaps(node, error);
  }
}

function reportLostBitmaps(node: Qcow2Node, error: unknown): void {
  const reason = reasonOf(error);
  node.layer.report(`${node.name}: Failed to make dirty bitmaps writable: ${reason}\n`);
}
