/**
 * Reading and writing metadata in the image file: plain bytes at host offsets, checked against overlaps.
 *
 * No order is kept here; who writes what when is writeback.ts and the operations that change the image's structure.
 */

import { allocateIoMemory, type IoMemory, vectorOf } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { hex, ImageCorruption } from '../layout/damage.ts';
import { encodeHeader, type Header } from '../layout/header.ts';
import { findOverlap, mayOverlap, type OverlapKind, overlapName } from '../layout/overlap.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';

/** Fills `mem` from the image file; past its end are zeroes. */
export function readInto(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  mem: IoMemory,
): Promise<void> {
  return co.preadv(node.state.file.node, guard, offset, mem.buf.length, vectorOf(mem), 0);
}

/** Reads metadata into a new buffer. `bytes` has been checked against a limit by the caller. */
export async function readMetadata(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Buffer> {
  const mem = allocateIoMemory(bytes);
  if (bytes > 0) await readInto(node, guard, offset, mem);
  return mem.buf;
}

/** Throws when a write to the image file would hit metadata other than `allowed`. */
export function checkOverlap(
  node: Qcow2Node,
  offset: number,
  bytes: number,
  allowed: OverlapKind | null,
): void {
  const s = node.state;
  if (!mayOverlap(s, offset, bytes)) return;
  const kind = findOverlap(s, offset, bytes, allowed);
  if (kind === null) return;
  throw new ImageCorruption(
    `Preventing invalid write on metadata (overlaps with ${overlapName(kind)})`,
    true,
    offset,
    bytes,
  );
}

/** Writes metadata. `kind` says what it is: it may overlap that and nothing else. */
export function writeMetadata(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  data: Buffer,
  kind: OverlapKind | null,
): Promise<void> {
  checkOverlap(node, offset, data.length, kind);
  const mem = allocateIoMemory(data.length);
  data.copy(mem.buf);
  return co.pwritev(node.state.file.node, guard, offset, data.length, vectorOf(mem), 0);
}

/** Everything written so far reaches stable storage: data and metadata. */
export async function barrier(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const s = node.state;
  if (s.hasDataFile) await co.flush(s.dataFile.node, guard);
  await co.flush(s.file.node, guard);
}

/** Writes the header as it is in memory. */
export async function writeHeader(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const cluster = encodeHeader(node.state.header);
  let used = cluster.length;
  while (used > 512 && cluster[used - 1] === 0) used--;
  used = Math.min(cluster.length, Math.max(Math.ceil(used / 512) * 512, 1024));
  // What an earlier, longer header left behind the end marker is not looked at.
  const mem = allocateIoMemory(used);
  cluster.copy(mem.buf, 0, 0, used);
  await co.pwritev(node.state.file.node, guard, 0, used, vectorOf(mem), 0);
}

/**
 * Changes fields of the header, in memory and on stable storage. When that fails they are what they were before, and
 * `undo` is run as soon as the disk certainly says so too: only then may what the new header would have pointed to be
 * used for something else.
 */
export async function changeHeader(
  node: Qcow2Node,
  guard: GraphReadGuard,
  change: Partial<Header>,
  undo: () => void = () => undefined,
): Promise<void> {
  const { header, headerUndo } = node.state;
  const names = Object.keys(change) as (keyof Header)[];
  const before = Object.fromEntries(names.map((name) => [name, header[name]]));
  Object.assign(header, change);
  try {
    await writeHeader(node, guard);
    await barrier(node, guard);
  } catch (error) {
    Object.assign(header, before);
    headerUndo.push(undo);
    await settleHeader(node, guard).catch(() => undefined);
    throw error;
  }
}

/** Sees to it that the header on the disk is the one in memory, if a change of it has failed. */
export async function settleHeader(node: Qcow2Node, guard: GraphReadGuard): Promise<void> {
  const { headerUndo } = node.state;
  if (headerUndo.length === 0) return;
  await writeHeader(node, guard);
  await barrier(node, guard);
  for (const undo of headerUndo.splice(0)) undo();
}

/** Host offset of a table, checked: aligned to clusters and inside what can be addressed. */
export function checkTableOffset(clusterBytes: number, offset: number, what: string): void {
  if (offset % clusterBytes !== 0) throw new ImageCorruption(`${what} offset ${hex(offset)} unaligned`, true);
  if (offset > Number.MAX_SAFE_INTEGER) throw ioError(E.EFBIG);
}

/** Throws when the cluster found free for a new table is a table already: refcounts are wrong. */
export function checkTablePlace(s: Qcow2State, offset: number, what: 'L2 table' | 'refcount block'): void {
  if (offset !== 0 && !s.metadata.has(offset / s.clusterBytes)) return;
  throw new ImageCorruption(`Preventing invalid allocation of ${what} at offset ${hex(offset)}`, true);
}
