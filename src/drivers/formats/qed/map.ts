/** Where the clusters of a qed image are, how new ones are taken, and how that reaches the disk. */

import type { OpenPurpose } from '../../../block/contract/driver.ts';
import type { BackingName } from '../../../block/contract/image.ts';
import type { BlockChild, BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { HOLE, ZERO } from '../shared/flat-table.ts';
import { type BlockMap, isNeed, Place } from '../shared/mapped-image.ts';
import {
  abandonTwoLevel,
  linkTwoLevel,
  lookupTwoLevel,
  pageForChange,
  planTwoLevel,
  readEntry,
  type TwoLevelState,
  twoLevelWriteBack,
  writeEntry,
} from '../shared/two-level.ts';
import type { QedHeader } from './header.ts';

export interface QedState extends TwoLevelState {
  readonly file: BlockChild;
  readonly header: QedHeader;
  readonly purpose: OpenPurpose;
  backing: BackingName | null;
  /** Clears the need-check flag when nothing has been allocated for a while. */
  checkTimer: NodeJS.Timeout | null;
  lastAllocationMs: number;
}

export type QedNode = BlockNode<QedState>;

/** L2 entry of a cluster that reads as zeroes. */
const ZERO_ENTRY = 1;

/** What an L2 entry says; throws for one that cannot be. `end`: of what may be named. */
export function decodeEntry(entry: number, clusterBytes: number, end: number): number {
  if (entry === 0) return HOLE;
  if (entry === ZERO_ENTRY) return ZERO;
  if (!isPlace(entry, clusterBytes, end))
    throw new BlockError(`Invalid QED image: cluster offset 0x${BigInt(entry).toString(16)}`, {
      errno: E.EIO,
    });
  return entry;
}

/** Whether a cluster or a table can be at `offset`. */
export function isPlace(offset: number, clusterBytes: number, end: number): boolean {
  return offset % clusterBytes === 0 && offset >= clusterBytes && offset < end;
}

export const map: BlockMap<QedState> = {
  lookup: ({ state }, offset, bytes) => lookupTwoLevel(state.table, state.found, offset, bytes),
  plan: ({ state }, offset) => planTwoLevel(state.table, state.space, offset),
  link({ state }, allocation) {
    state.lastAllocationMs = performance.now();
    linkTwoLevel(state.table, allocation, allocation.host);
  },
  abandon: ({ state }, allocation, untouched) =>
    abandonTwoLevel(state.table, state.space, allocation, untouched),
  zero: zeroClusters,
  writeBack: twoLevelWriteBack,
};

/** Marks whole clusters without a place as zero; a cluster with data keeps its place and is cleared there. */
function zeroClusters(node: QedNode, offset: number, bytes: number) {
  const { table, found, space } = node.state;
  if (found.kind === Place.data || offset % table.blockBytes !== 0) return 0;
  const toEnd = offset + bytes >= node.totalBytes;
  const whole = toEnd ? bytes : bytes - (bytes % table.blockBytes);
  if (whole <= 0) return 0;
  const place = pageForChange(table, space, offset);
  if (isNeed(place)) return place;
  const { page } = place;
  let done = 0;
  for (let { at } = place; done < whole && at < page.view.byteLength; at += 8) {
    if (readEntry(page.view, at, true) > ZERO_ENTRY) break;
    writeEntry(page.view, at, ZERO_ENTRY, true);
    done += table.blockBytes;
  }
  if (done > 0) table.tables.cache.markDirty(page);
  if (done === 0) throw ioError(E.EIO);
  return Math.min(done, whole);
}
