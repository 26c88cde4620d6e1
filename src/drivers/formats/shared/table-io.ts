/** Tables and headers of an image as plain bytes: reading them whole, in pieces through a cache, writing them. */

import { allocateIoMemory, type IoMemory, vectorOf } from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import type { BlockChild } from '../../../block/graph/node.ts';
import { co, sync } from '../../../block/io/callbacks.ts';
import type { TableFile, TableNeed } from './mapped-image.ts';
import type { CachedTable } from './table-cache.ts';

/** Reads bytes into a new buffer; past the end of the file are zeroes. `bytes` has been checked by the caller. */
export async function readBytes(
  child: BlockChild,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Buffer> {
  const memory = allocateIoMemory(bytes);
  if (bytes > 0) await co.preadv(child.node, guard, offset, bytes, vectorOf(memory), 0);
  return memory.buf;
}

export async function writeBytes(
  child: BlockChild,
  guard: GraphReadGuard,
  offset: number,
  data: Uint8Array,
): Promise<void> {
  const memory = allocateIoMemory(data.length);
  memory.buf.set(data);
  await co.pwritev(child.node, guard, offset, data.length, vectorOf(memory), 0);
}

/** Reads the table that a step needs. */
export function loadTable({ tables, offset }: TableNeed, guard: GraphReadGuard): Promise<CachedTable> {
  return tables.cache.load(offset, (memory) =>
    co.preadv(tables.child.node, guard, offset, memory.buf.length, vectorOf(memory), 0),
  );
}

/** As loadTable, within this turn; false: nothing has been done. */
export function tryLoadTable({ tables, offset }: TableNeed, guard: GraphReadGuard): boolean {
  const read = (memory: IoMemory): boolean =>
    sync.tryPreadv(tables.child.node, guard, offset, memory.buf.length, vectorOf(memory));
  return tables.cache.tryLoad(offset, read) !== undefined;
}

/** What is to be written of a table: all but what is behind the end of its kind. */
export function tableBytes({ cache, endBytes }: TableFile, offset: number): number {
  return Math.min(cache.tableBytes, endBytes - offset);
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A 64-bit little-endian number; above 2^53 the low bits are lost, which is out of every accepted range. */
export function readU64Le(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * 2 ** 32 + view.getUint32(at, true);
}

export function readU64Be(view: DataView, at: number): number {
  return view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
}
