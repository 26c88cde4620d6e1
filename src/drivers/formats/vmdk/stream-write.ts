/**
 * Writing compressed extents: grains one behind the other, each compressed by itself.
 *
 * In an extent with its directory at the end (streamOptimized as VMware makes it, for whoever reads in order) a grain
 * table follows the grains it lists, with a marker in front; the directory, the footer and the end marker come when the
 * image is complete. Elsewhere (images of qemu-img) the tables have their places at the front and are changed there.
 */

import { promisify } from 'node:util';
import { deflate } from 'node:zlib';
import { copyFromVector, type IoVector, isZero } from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { co } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { takeSpace } from '../shared/append-space.ts';
import { Place } from '../shared/mapped-image.ts';
import { lookUp } from '../shared/mapped-read.ts';
import { loadTable, writeBytes } from '../shared/table-io.ts';
import { changeContentId } from './content-id.ts';
import { map } from './map.ts';
import { GRAIN_MARKER_BYTES, Marker, newMarker, newSparseHeader, SECTOR_BYTES } from './sparse-header.ts';
import { type Extent, extentAt, type SparsePart, type VmdkNode } from './state.ts';

const deflateGrain: (data: Buffer) => Promise<Buffer> = promisify(deflate);

/** What a stream has besides grains. */
export interface GrainStream {
  readonly capacitySectors: number;
  readonly overheadBytes: number;
  readonly hasDescriptor: boolean;
  /** Numbers of the tables that have grains since they were last written. */
  readonly open: Set<number>;
  /** Grains have been written since the last footer. */
  unfinished: boolean;
}

export function createStream(
  shape: Pick<GrainStream, 'capacitySectors' | 'overheadBytes' | 'hasDescriptor'>,
): GrainStream {
  return { ...shape, open: new Set(), unfinished: false };
}

/** Writes whole grains that have never been written. bytes 0: the image is complete. */
export async function pwritevCompressed(
  node: VmdkNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { state } = node;
  if (bytes === 0) {
    for (const extent of state.extents) await finishStream(extent, guard);
    return;
  }
  if (!state.cidChanged) await changeContentId(node, guard);
  const data = Buffer.allocUnsafe(bytes);
  copyFromVector(vec, data);
  for (let at = 0; at < bytes; ) {
    const extent = extentAt(state, offset + at);
    const part = extent.sparse;
    if (part === null || !part.compressed || part.space === null) throw ioError(E.ENOTSUP);
    const within = offset + at - extent.start;
    const length = Math.min(part.grainBytes, extent.bytes - within);
    if (within % part.grainBytes !== 0 || length > bytes - at) throw ioError(E.EINVAL);
    await writeGrain(node, guard, extent, part, within, data.subarray(at, at + length));
    at += length;
  }
}

async function writeGrain(
  node: VmdkNode,
  guard: GraphReadGuard,
  extent: Extent,
  part: SparsePart,
  within: number,
  data: Buffer,
): Promise<void> {
  // What is not there reads as zeroes, unless there is an image below.
  if (node.child('backing') === null && isZero(data)) return;
  const packing = pack(part, within, data);
  const done = part.lastGrain.then(async () => append(node, guard, extent, part, within, await packing));
  part.lastGrain = done.catch(() => undefined);
  // Not left alone should the turn never come.
  packing.catch(() => undefined);
  await done;
}

/** Marker and compressed data, up to a whole sector. The last grain is filled up with zeroes. */
async function pack(part: SparsePart, within: number, data: Buffer): Promise<Buffer> {
  const whole = data.length === part.grainBytes ? data : Buffer.alloc(part.grainBytes, data);
  if (whole !== data) whole.fill(0, data.length);
  const packed = await deflateGrain(whole);
  const length = GRAIN_MARKER_BYTES + packed.length;
  const grain = Buffer.alloc(Math.ceil(length / SECTOR_BYTES) * SECTOR_BYTES);
  grain.writeBigUInt64LE(BigInt(within / SECTOR_BYTES), 0);
  grain.writeUInt32LE(packed.length, 8);
  packed.copy(grain, GRAIN_MARKER_BYTES);
  return grain;
}

async function append(
  node: VmdkNode,
  guard: GraphReadGuard,
  extent: Extent,
  part: SparsePart,
  within: number,
  grain: Buffer,
): Promise<void> {
  await lookUp(map, node, guard, extent.start + within, 1);
  // As in the original, compressed grains cannot be written twice.
  if (node.state.found.kind === Place.packed) throw ioError(E.EIO);
  const number = Math.floor(within / (part.grainBytes * part.entriesPerTable));
  const entry = Math.floor(within / part.grainBytes) % part.entriesPerTable;
  const { stream, tables } = part;
  const child = extent.child!;
  if (stream !== null) {
    for (const before of stream.open)
      if (before < number) await writeStreamTable(part, stream, guard, before);
  }
  const page = await tableOf(part, number, guard);
  page.pins++;
  try {
    const host = takeSpace(part.space!, grain.length);
    await writeBytes(child, guard, host, grain);
    page.view.setUint32(entry * 4, host / SECTOR_BYTES, true);
    tables.cache.markDirty(page);
  } finally {
    page.pins--;
  }
  if (stream === null) return;
  stream.open.add(number);
  stream.unfinished = true;
}

/** The table with that number; in a stream it stays dirty, and so in memory, until it has its place behind its grains. */
async function tableOf(part: SparsePart, number: number, guard: GraphReadGuard) {
  const { directory, tables, stream } = part;
  const known = directory[number]!;
  if (known !== 0) return tables.cache.get(known) ?? loadTable({ tables, offset: known }, guard);
  // A place that no file has, until it is written: every table needs one of its own.
  const bytes = tables.cache.tableBytes;
  const at = stream === null ? takeSpace(part.space!, bytes) : 2 ** 52 + number * bytes;
  directory[number] = at;
  if (stream === null) part.changed.add(number);
  return tables.cache.create(at);
}

/** Writes a table behind its grains; grains that come later make it written once more. */
async function writeStreamTable(
  part: SparsePart,
  stream: GrainStream,
  guard: GraphReadGuard,
  number: number,
): Promise<void> {
  const { directory, tables, space } = part;
  const old = await tableOf(part, number, guard);
  const content = Buffer.from(old.mem.buf);
  const sectors = tables.cache.tableBytes / SECTOR_BYTES;
  const at = takeSpace(space!, SECTOR_BYTES + content.length);
  await writeBytes(tables.child, guard, at, Buffer.concat([newMarker(Marker.grainTable, sectors), content]));
  tables.cache.drop(directory[number]!);
  const table = tables.cache.create(at + SECTOR_BYTES);
  content.copy(table.mem.buf);
  tables.cache.markClean(table);
  directory[number] = table.offset;
  stream.open.delete(number);
}

/** Tables, directory, footer and end of a stream. */
export async function finishStream({ sparse, child }: Extent, guard: GraphReadGuard): Promise<void> {
  if (sparse === null || sparse.stream === null || !sparse.stream.unfinished) return;
  const { stream, directory, space } = sparse;
  await sparse.lastGrain;
  for (const number of [...stream.open].sort((a, b) => a - b))
    await writeStreamTable(sparse, stream, guard, number);
  const sectors = Math.ceil((directory.length * 4) / SECTOR_BYTES);
  const parts = Buffer.alloc((1 + sectors + 3) * SECTOR_BYTES);
  newMarker(Marker.grainDirectory, sectors).copy(parts);
  for (const [i, offset] of directory.entries())
    parts.writeUInt32LE(offset / SECTOR_BYTES, SECTOR_BYTES + i * 4);
  const at = takeSpace(space!, parts.length);
  const footer = newSparseHeader({
    capacitySectors: stream.capacitySectors,
    zeroedGrains: false,
    compressed: true,
    directory: at / SECTOR_BYTES + 1,
    redundant: 0,
    overhead: stream.overheadBytes / SECTOR_BYTES,
    hasDescriptor: stream.hasDescriptor,
  });
  const footerAt = (1 + sectors) * SECTOR_BYTES;
  newMarker(Marker.footer, 1).copy(parts, footerAt);
  footer.copy(parts, footerAt + SECTOR_BYTES);
  await writeBytes(child!, guard, at, parts);
  stream.unfinished = false;
  await co.flush((child as BlockChild).node, guard);
}
