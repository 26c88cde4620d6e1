/**
 * Refcounts as they are on the disk, for an image check: reading them around the driver's cache, comparing them with
 * the counts the check has made, and putting them right.
 */

import { co } from '../../../../block/io/callbacks.ts';
import { E, strerror } from '../../../../errors/errno.ts';
import { errnoOf, ioError } from '../../../../errors/error.ts';
import { hex, ImageCorruption } from '../layout/damage.ts';
import type { Qcow2State } from '../layout/state.ts';
import { reportCorruption } from '../metadata/corruption.ts';
import { readRefcount, writeRefcount } from '../metadata/refcount.ts';
import { type Check, readTable, writeTable } from './state.ts';

/** Memory for refcount blocks. */
const CACHE_BYTES = 4 * 1024 * 1024;
const MIN_CACHED_BLOCKS = 4;
/** Offsets that no file has. */
const MAX_OFFSET = 2 ** 63;

/** Refcount blocks read from the disk, the last used ones kept. */
export class DiskRefcounts {
  readonly #blocks = new Map<number, DataView>();
  readonly #capacity: number;
  /** The block used last: neighbours are asked for one after another. */
  #lastIndex = -1;
  #lastView: DataView | null = null;

  constructor(s: Qcow2State) {
    this.#capacity = Math.max(MIN_CACHED_BLOCKS, Math.floor(CACHE_BYTES / s.clusterBytes));
  }

  /** Block `index` of the refcount table; null when there is none. Throws EIO when it cannot be read. */
  async block(c: Check, index: number): Promise<DataView | null> {
    const { s } = c;
    const offset = index < s.refcountTable.length ? s.refcountTable[index]! : 0;
    if (offset === 0) return null;
    const known = this.#blocks.get(index);
    this.#lastIndex = -1;
    if (known !== undefined) {
      // A Map keeps insertion order: the first is the one not used for the longest time.
      this.#blocks.delete(index);
      this.#blocks.set(index, known);
      return known;
    }
    if (offset % s.clusterBytes !== 0) {
      throw await reportCorruption(
        c.node,
        c.guard,
        new ImageCorruption(`Refblock offset ${hex(offset)} unaligned (reftable index: ${hex(index)})`, true),
      );
    }
    if (offset >= MAX_OFFSET || s.dead) throw ioError(E.EIO);
    const view = await readTable(c, offset, s.clusterBytes);
    if (this.#blocks.size >= this.#capacity) this.#blocks.delete(this.#blocks.keys().next().value!);
    this.#blocks.set(index, view);
    return view;
  }

  /** The refcount of one cluster if its block was the last one asked for; else undefined: ask `get`. */
  peek(s: Qcow2State, cluster: number): number | undefined {
    if (Math.floor(cluster / s.refcountsPerBlock) !== this.#lastIndex) return undefined;
    return this.#lastView === null
      ? 0
      : readRefcount(this.#lastView, s.refcountOrder, cluster % s.refcountsPerBlock);
  }

  /** The refcount of one cluster; null when it cannot be read. */
  async get(c: Check, cluster: number): Promise<number | null> {
    const { refcountsPerBlock, refcountOrder } = c.s;
    try {
      const index = Math.floor(cluster / refcountsPerBlock);
      const view = await this.block(c, index);
      this.#lastIndex = index;
      this.#lastView = view;
      return view === null ? 0 : readRefcount(view, refcountOrder, cluster % refcountsPerBlock);
    } catch {
      return null;
    }
  }

  /** The refcount of one cluster in decimal, exact at any width. */
  async text(c: Check, cluster: number): Promise<string> {
    const { refcountsPerBlock, refcountOrder } = c.s;
    const view = await this.block(c, Math.floor(cluster / refcountsPerBlock));
    return view === null ? '0' : refcountText(view, refcountOrder, cluster % refcountsPerBlock);
  }

  /** Writes a block that has been changed in memory. */
  async write(c: Check, index: number, view: DataView): Promise<void> {
    const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
    await writeTable(c, c.s.refcountTable[index]!, bytes, 'refcount-block');
  }

  /** Changes one refcount; its block exists. */
  async set(c: Check, cluster: number, value: number): Promise<void> {
    const { refcountsPerBlock, refcountOrder } = c.s;
    const index = Math.floor(cluster / refcountsPerBlock);
    const view = (await this.block(c, index))!;
    writeRefcount(view, refcountOrder, cluster % refcountsPerBlock, value);
    await this.write(c, index, view);
  }

  clear(): void {
    this.#blocks.clear();
    this.#lastIndex = -1;
  }
}

function refcountText(view: DataView, order: number, index: number): string {
  if (order === 6) return view.getBigUint64(index * 8).toString();
  return readRefcount(view, order, index).toString();
}

export interface Fixes {
  readonly leaks: boolean;
  readonly errors: boolean;
}

/**
 * Compares the counts made with those on the disk and puts right what `fixes` allows. Counts corruptions and leaks,
 * sets the end of the image, and asks for a rebuild when a cluster in use is not counted at all.
 */
export async function compareRefcounts(c: Check, fixes: Fixes): Promise<void> {
  const { refcountsPerBlock, clusterBytes } = c.s;
  let highest = 0;
  // What ends in the cluster behind the end of the file is counted too.
  const clusters = Math.max(c.clusters, c.references.end);
  const blocks = Math.ceil(clusters / refcountsPerBlock);
  for (let index = 0; index < blocks; index++) {
    await c.turns.next();
    const from = index * refcountsPerBlock;
    const to = Math.min(from + refcountsPerBlock, clusters);
    let view: DataView | null;
    try {
      view = await c.refcounts.block(c, index);
    } catch (error) {
      reportUnreadable(c, from, to, errnoOf(error));
      continue;
    }
    if (view === null && !c.references.mayHave(from, to)) continue;
    const outcome = compareBlock(c, view, from, to, fixes);
    highest = Math.max(highest, outcome.highest);
    if (view === null || !outcome.changed) continue;
    await c.refcounts.write(c, index, view);
    for (const [first, end] of outcome.freed) await discardClusters(c, first, end);
  }
  c.result.imageEndOffset = (highest + 1) * clusterBytes;
}

interface BlockOutcome {
  readonly highest: number;
  readonly changed: boolean;
  /** Runs of clusters that nobody uses any more: first, behind the last. */
  readonly freed: readonly (readonly [from: number, to: number])[];
}

/** Gives the space of clusters [from, to) back; an image does not get worse when that fails. */
export async function discardClusters(c: Check, from: number, to: number): Promise<void> {
  const { clusterBytes, file } = c.s;
  const bytes = Math.min(to * clusterBytes, c.fileBytes) - from * clusterBytes;
  if (bytes > 0) await co.pdiscard(file.node, c.guard, from * clusterBytes, bytes).catch(() => undefined);
}

/** Compares clusters [from, to), which are counted by the block `view`; changes the block where that is allowed. */
function compareBlock(c: Check, view: DataView | null, from: number, to: number, fixes: Fixes): BlockOutcome {
  const { request, references, result } = c;
  const { refcountOrder } = c.s;
  let highest = 0;
  let changed = false;
  const freed: [number, number][] = [];
  for (let cluster = from; cluster < to; cluster++) {
    const index = cluster - from;
    const stored = view === null ? 0 : readRefcount(view, refcountOrder, index);
    const counted = references.get(cluster);
    if (stored === 0 && counted === 0) continue;
    highest = cluster;
    if (stored === counted) continue;
    const isLeak = stored > counted;
    const fix = view !== null && (isLeak ? fixes.leaks : fixes.errors);
    if (stored === 0) c.rebuild = true;
    const text = view === null ? '0' : refcountText(view, refcountOrder, index);
    const verb = fix ? 'Repairing' : isLeak ? 'Leaked' : 'ERROR';
    request.report(`${verb} cluster ${cluster} refcount=${text} reference=${counted}`);
    if (fix) {
      writeRefcount(view, refcountOrder, index, counted);
      changed = true;
      if (counted === 0) {
        const last = freed.at(-1);
        if (last?.[1] === cluster) last[1]++;
        else freed.push([cluster, cluster + 1]);
      }
      if (isLeak) result.leaksFixed++;
      else result.corruptionsFixed++;
    } else if (isLeak) {
      result.leaks++;
    } else {
      result.corruptions++;
    }
  }
  return { highest, changed, freed };
}

function reportUnreadable(c: Check, from: number, to: number, errno: number): void {
  for (let cluster = from; cluster < to; cluster++) {
    c.request.report(`Can't get refcount for cluster ${cluster}: ${strerror(errno)}`);
    c.result.checkErrors++;
  }
}
