/**
 * The part of an image check that makes new refcount structures from the counts alone, when those on the disk are of
 * no use.
 *
 * New blocks and the new table go to clusters nobody refers to (the old structures count as used, so they stay as they
 * are), and are on stable storage before the header points to them: until then the image is what it was. The old
 * structures are leaked clusters afterwards, for the caller to find.
 *
 * A block goes to the first free cluster of the range it counts, or behind it; the table to the first place it fits.
 * Source of the placement: observation of the original.
 */

import { E, strerror } from '../../../../errors/errno.ts';
import { errnoOf, ioError } from '../../../../errors/error.ts';
import { MAX_REFTABLE_BYTES, offsetHi, offsetLo, viewOf, writeU64 } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import { toRequestError } from '../metadata/corruption.ts';
import { barrier } from '../metadata/metadata-io.ts';
import { writeRefcount } from '../metadata/refcount.ts';
import { type Check, programError, writeTable, writeUnchecked } from './state.ts';

/** Where the table's place and size are in the header. */
const HEADER_FIELD_OFFSET = 48;

interface Layout {
  /** Host cluster of each block; absent: no cluster of its range is in use. */
  readonly blocks: Map<number, number>;
  /** Highest range with a block; -1: none. */
  lastBlock: number;
  tableCluster: number;
  tableClusters: number;
  /** Nothing is free in [from, to): what the last search for a block's place has found out. */
  readonly full: { from: number; to: number };
}

/** Makes and installs new refcount structures. Throws EIO after saying why when it cannot. */
export async function rebuildRefcounts(c: Check): Promise<void> {
  const layout = planLayout(c);
  try {
    for (const [index, cluster] of layout.blocks) await writeBlock(c, index, cluster);
  } catch (error) {
    throw await failed(c, 'ERROR writing refblock', error);
  }
  const { s } = c;
  const table = new Float64Array((layout.tableClusters * s.clusterBytes) / 8);
  const content = Buffer.alloc(layout.tableClusters * s.clusterBytes);
  for (const [index, cluster] of layout.blocks) {
    table[index] = cluster * s.clusterBytes;
    writeU64(viewOf(content), index * 8, table[index]);
  }
  const tableOffset = layout.tableCluster * s.clusterBytes;
  try {
    await writeTable(c, tableOffset, content, null);
    await barrier(c.node, c.guard);
  } catch (error) {
    throw await failed(c, 'ERROR writing reftable', error);
  }
  const field = Buffer.alloc(12);
  field.writeUInt32BE(offsetHi(tableOffset), 0);
  field.writeUInt32BE(offsetLo(tableOffset), 4);
  field.writeUInt32BE(layout.tableClusters, 8);
  try {
    // What the header says lies at its own place is what is being corrected.
    await writeUnchecked(c, HEADER_FIELD_OFFSET, field);
    await barrier(c.node, c.guard);
  } catch (error) {
    throw await failed(c, 'ERROR setting reftable in header', error);
  }
  s.header.refcountTableOffset = tableOffset;
  s.header.refcountTableClusters = layout.tableClusters;
  s.refcountTable = table;
  s.refcountCache.clear();
  c.refcounts.clear();
  rebuildMetadata(s);
}

async function failed(c: Check, what: string, error: unknown): Promise<unknown> {
  const shown = await toRequestError(c.node, c.guard, error);
  programError(c, `${what}: ${strerror(errnoOf(shown))}`);
  return shown;
}

/** Finds places for the blocks and the table; they are counted as used from then on. */
function planLayout(c: Check): Layout {
  const { references } = c;
  const { clusterBytes, refcountsPerBlock } = c.s;
  const full = { from: 0, to: 0 };
  const layout: Layout = { blocks: new Map(), lastBlock: -1, tableCluster: 0, tableClusters: 0, full };
  placeBlocks(c, layout, 0);
  for (;;) {
    const needed = Math.ceil(((layout.lastBlock + 1) * 8) / clusterBytes);
    if (needed <= layout.tableClusters) return layout;
    if (needed * clusterBytes > MAX_REFTABLE_BYTES) throw ioError(E.EFBIG);
    for (let i = 0; i < layout.tableClusters; i++) references.set(layout.tableCluster + i, 0);
    full.to = full.from;
    layout.tableCluster = references.findFree(0, needed);
    layout.tableClusters = needed;
    for (let i = 0; i < needed; i++) references.set(layout.tableCluster + i, 1);
    placeBlocks(c, layout, Math.floor(layout.tableCluster / refcountsPerBlock));
  }
}

/** Places a block for every range from `first` on that is in use and has none. */
function placeBlocks(c: Check, layout: Layout, first: number): void {
  const { references } = c;
  const { refcountsPerBlock } = c.s;
  // The end moves when blocks are placed behind it.
  for (let index = first; index * refcountsPerBlock < references.end; index++) {
    const from = index * refcountsPerBlock;
    if (layout.blocks.has(index) || !references.hasAny(from, from + refcountsPerBlock)) continue;
    const { full } = layout;
    const known = from >= full.from && from <= full.to;
    const cluster = references.findFree(known ? full.to : from, 1);
    if (!known) full.from = from;
    full.to = cluster + 1;
    references.set(cluster, 1);
    layout.blocks.set(index, cluster);
    layout.lastBlock = Math.max(layout.lastBlock, index);
  }
}

async function writeBlock(c: Check, index: number, cluster: number): Promise<void> {
  const { clusterBytes, refcountsPerBlock, refcountOrder } = c.s;
  const content = Buffer.alloc(clusterBytes);
  const view = viewOf(content);
  const from = index * refcountsPerBlock;
  const to = Math.min(from + refcountsPerBlock, c.references.end);
  for (let at = from; at < to; at++) {
    const count = c.references.get(at);
    if (count !== 0) writeRefcount(view, refcountOrder, at - from, count);
  }
  await writeTable(c, cluster * clusterBytes, content, null);
}
