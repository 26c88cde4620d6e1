/**
 * What the parts of an image check share, and the one way to count references to a region of the image file.
 *
 * The parts: check-snapshots (the snapshot table), check-tables (L1 and L2 tables), check-metadata (everything else
 * that lies in the file), check-refcounts (counts made against counts stored), check-rebuild (new refcount
 * structures), check-copied (COPIED flags). The order they run in is check.ts.
 */

import type { Turns } from '../../../../aio/host/turns.ts';
import { allocateIoMemory, type IoMemory, vectorOf } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { ImageCheckRequest, ImageCheckResult } from '../../../../block/contract/image.ts';
import { co, sync } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { ImageCorruption } from '../layout/damage.ts';
import { findOverlap, mayOverlap, type OverlapKind, overlapName } from '../layout/overlap.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { readInto } from '../metadata/metadata-io.ts';
import type { DiskRefcounts } from './refcounts.ts';
import type { ReferenceCounts } from './references.ts';

/** More clusters than this are not checked: as the original. */
export const MAX_CLUSTERS = 2 ** 31 - 1;

export interface Check {
  readonly node: Qcow2Node;
  readonly guard: GraphReadGuard;
  readonly s: Qcow2State;
  readonly request: ImageCheckRequest;
  /** Replaced while it is found out how often something has to be counted; parts add to it. */
  result: ImageCheckResult;
  /** Length of the image file in bytes, and in clusters rounded up. */
  fileBytes: number;
  clusters: number;
  references: ReferenceCounts;
  refcounts: DiskRefcounts;
  /** The refcount structures on the disk cannot be mended in place. */
  rebuild: boolean;
  /** A check reads what is in the page cache, and would keep everybody else waiting. */
  readonly turns: Turns;
  /** Something on the disk was changed. */
  repaired: boolean;
  /** Every entry of the active tables that refers to a cluster has the COPIED flag, as far as they have been walked. */
  allCopied: boolean;
  /** For one L2 table at a time. */
  l2Memory: IoMemory | null;
}

/** Reports an error of the image that stays as it is. */
export function corruption(c: Check, line: string): void {
  c.result.corruptions++;
  c.request.report(line);
}

/** A line that the original prints behind the program's name. */
export function programError(c: Check, line: string): void {
  (c.request.reportError ?? c.request.report)(line);
}

/** An entry of two halves in hexadecimal, without leading zeroes. */
export function entryHex(hi: number, lo: number): string {
  return hi === 0 ? lo.toString(16) : hi.toString(16) + lo.toString(16).padStart(8, '0');
}

/** Finds out how long the image file is. Throws EFBIG when that is more than can be checked. */
export async function measureFile(c: Check): Promise<void> {
  // In whole sectors: as the original counts.
  c.fileBytes = Math.ceil((await co.getLength(c.s.file.node, c.guard)) / 512) * 512;
  c.clusters = Math.ceil(c.fileBytes / c.s.clusterBytes);
  if (c.clusters > MAX_CLUSTERS) {
    c.result.checkErrors++;
    throw ioError(E.EFBIG);
  }
}

/**
 * Reads [offset, offset+bytes) of the image file; what lies behind its end reads as zeroes, without any I/O. When it
 * cannot be read, that is reported as having happened `where`, if that is given, and thrown. `mem`: where to, `bytes` long.
 */
export async function readTable(
  c: Check,
  offset: number,
  bytes: number,
  where: string | null = null,
  mem: IoMemory = allocateIoMemory(bytes),
): Promise<DataView> {
  try {
    if (offset >= c.fileBytes) mem.buf.fill(0);
    else if (!sync.tryPreadv(c.s.file.node, c.guard, offset, bytes, vectorOf(mem)))
      await readInto(c.node, c.guard, offset, mem);
  } catch (error) {
    if (where !== null) {
      c.result.checkErrors++;
      c.request.report(`ERROR: I/O error in ${where}`);
    }
    throw error;
  }
  return new DataView(mem.buf.buffer, mem.buf.byteOffset, bytes);
}

/** An L2 table, in the memory that the next one will take. */
export function readL2(c: Check, offset: number, where: string): Promise<DataView> {
  c.l2Memory ??= allocateIoMemory(c.s.clusterBytes);
  return readTable(c, offset, c.s.clusterBytes, where, c.l2Memory);
}

/** The table as words of 32 bits, of which only whether they are zero means anything here. */
export function wordsOf({ buffer, byteOffset, byteLength }: DataView): Int32Array {
  return new Int32Array(buffer, byteOffset, byteLength / 4);
}

/** Index of the first entry from `index` on that is not all zeroes, or the number of entries. Huge images have few. */
export function usedEntry(words: Int32Array, index: number, entryBytes: number): number {
  const perEntry = entryBytes / 4;
  let at = index * perEntry;
  while (at < words.length && words[at] === 0) at++;
  return Math.floor(at / perEntry);
}

/**
 * Writes part of a table to `offset` of the image file. `kind` says what it is: it may overlap that and nothing else.
 * Throws ImageCorruption when it would, EIO once the image is known to be broken.
 */
export async function writeTable(
  c: Check,
  offset: number,
  data: Uint8Array,
  kind: OverlapKind | null,
): Promise<void> {
  if (c.s.dead) throw ioError(E.EIO);
  const hit = mayOverlap(c.s, offset, data.length) ? findOverlap(c.s, offset, data.length, kind) : null;
  if (hit !== null) {
    const message = `Preventing invalid write on metadata (overlaps with ${overlapName(hit)})`;
    throw new ImageCorruption(message, true, offset, data.length);
  }
  await writeUnchecked(c, offset, data);
}

/** Writes where nothing can be overwritten that matters: the header's own fields. */
export async function writeUnchecked(c: Check, offset: number, data: Uint8Array): Promise<void> {
  const mem = allocateIoMemory(data.length);
  mem.buf.set(data);
  c.repaired = true;
  await co.pwritev(c.s.file.node, c.guard, offset, data.length, vectorOf(mem), 0);
}

/**
 * Counts a reference to every cluster that [offset, offset+bytes) touches. A region that ends a cluster or more behind
 * the end of the file is an error and not counted. `offsetText`: the offset in hexadecimal when the number is not exact.
 */
export function countRegion(c: Check, offset: number, bytes: number, offsetText: string | null = null): void {
  if (bytes <= 0) return;
  const { clusterBytes, maxRefcount } = c.s;
  if (offset + bytes - c.fileBytes >= clusterBytes) {
    corruption(
      c,
      'ERROR: counting reference for region exceeding the end of the file by one cluster or more: ' +
        `offset 0x${offsetText ?? offset.toString(16)} size 0x${bytes.toString(16)}`,
    );
    return;
  }
  const last = Math.floor((offset + bytes - 1) / clusterBytes);
  for (let cluster = Math.floor(offset / clusterBytes); cluster <= last; cluster++) {
    if (c.references.add(cluster, maxRefcount)) continue;
    corruption(c, `ERROR: overflow cluster offset=0x${(cluster * clusterBytes).toString(16)}`);
    c.request.report(
      'Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy ' +
        'if the image cannot be opened for writing',
    );
  }
}
