/**
 * Writing where compressed clusters are or shall be: a cluster that is written to in part is unpacked first, and clusters
 * can be written compressed, one behind another without alignment.
 */

import {
  allocateIoMemory,
  copyFromVector,
  type IoVector,
  sliceVector,
  vectorOf,
} from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { co } from '../../../block/io/callbacks.ts';
import { CoQueue } from '../../../coroutine/co-queue.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { compressCluster } from '../../compress/codec.ts';
import { giveBack, takeSpace } from '../shared/append-space.ts';
import { type Allocation, isNeed, Place } from '../shared/mapped-image.ts';
import { writeMapped } from '../shared/mapped-write.ts';
import { loadTable } from '../shared/table-io.ts';
import { pageForChange, type TwoLevelAllocation } from '../shared/two-level.ts';
import { scheduleWriteBack } from '../shared/write-back.ts';
import { encodePacked, map, type QcowNode } from './map.ts';

/** Who is giving the cluster at `offset` a place: to be waited for, and then all may be different. */
function otherAt({ state }: QcowNode, offset: number): Allocation | undefined {
  return state.allocations.find(({ start, end }) => start <= offset && offset < end);
}

function endAllocation({ state }: QcowNode, allocation: Allocation): void {
  state.allocations.splice(state.allocations.indexOf(allocation), 1);
  allocation.waiters.wakeAll();
}

/** Unpacks the compressed clusters that a write of the range covers in part; those covered whole too, which is rare. */
export async function unpackRange(
  node: QcowNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<void> {
  const { blockBytes } = node.state.table;
  for (let at = offset; at < offset + bytes; ) {
    const missing = map.lookup(node, at, offset + bytes - at);
    if (missing !== null) {
      await loadTable(missing, guard);
      continue;
    }
    const { found } = node.state;
    if (found.kind !== Place.packed) {
      at += found.bytes;
      continue;
    }
    const start = at - (at % blockBytes);
    const other = otherAt(node, start);
    if (other !== undefined) {
      await other.waiters.wait();
      continue;
    }
    const planned = map.plan!(node, start);
    if (isNeed(planned)) {
      await loadTable(planned, guard);
      continue;
    }
    await moveUnpacked(node, guard, planned);
    at = start + blockBytes;
  }
}

async function moveUnpacked(node: QcowNode, guard: GraphReadGuard, allocation: Allocation): Promise<void> {
  const { state } = node;
  const { start, host } = allocation;
  state.allocations.push(allocation);
  let linked = false;
  try {
    const whole = allocateIoMemory(state.table.blockBytes);
    // The tables are in memory, and nothing has been awaited: this finds the compressed cluster again.
    if (map.lookup(node, start, whole.buf.length) !== null) throw ioError(E.EIO);
    const { found } = state;
    await map.readPacked!(
      node,
      guard,
      { child: state.file, host: found.host, offset: start },
      vectorOf(whole),
    );
    await co.pwritev(state.file.node, guard, host, whole.buf.length, vectorOf(whole), 0);
    map.link!(node, allocation);
    linked = true;
  } finally {
    if (!linked) map.abandon!(node, allocation, false);
    endAllocation(node, allocation);
  }
  scheduleWriteBack(map, node);
}

/** Writes whole clusters compressed; those that do not shrink, or have a place already, are written as they are. */
export async function pwritevCompressed(
  node: QcowNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { state } = node;
  const { blockBytes } = state.table;
  if (state.isEncrypted) throw ioError(E.ENOTSUP);
  const end = offset + bytes;
  if (offset % blockBytes !== 0 || (end % blockBytes !== 0 && end !== node.totalBytes))
    throw ioError(E.EINVAL);
  for (let at = 0; at < bytes; at += blockBytes) {
    const part = sliceVector(vec, at, Math.min(blockBytes, bytes - at));
    await writeCluster(node, guard, offset + at, part);
  }
}

async function writeCluster(
  node: QcowNode,
  guard: GraphReadGuard,
  offset: number,
  vec: IoVector,
): Promise<void> {
  const { state } = node;
  const { space, table, header } = state;
  const plain = Buffer.alloc(table.blockBytes);
  copyFromVector(vec, plain);
  const packed = await compressCluster('zlib', plain);
  for (;;) {
    const missing = map.lookup(node, offset, vec.bytes);
    if (missing !== null) {
      await loadTable(missing, guard);
      continue;
    }
    if (packed === null || state.found.kind === Place.data) {
      await unpackRange(node, guard, offset, vec.bytes);
      await writeMapped(map, node, guard, offset, vec.bytes, vec);
      return;
    }
    const other = otherAt(node, offset);
    if (other !== undefined) {
      await other.waiters.wait();
      continue;
    }
    const place = pageForChange(table, space, offset);
    if (isNeed(place)) {
      await loadTable(place, guard);
      continue;
    }
    const host = takeSpace(space, packed.length);
    place.page.pins++;
    const allocation: TwoLevelAllocation = {
      start: offset,
      end: offset + table.blockBytes,
      host,
      child: state.file,
      fresh: false,
      waiters: new CoQueue(),
      ...place,
    };
    state.allocations.push(allocation);
    try {
      const mem = allocateIoMemory(packed.length);
      packed.copy(mem.buf);
      await co.pwritev(state.file.node, guard, host, packed.length, vectorOf(mem), 0);
      place.page.view.setBigUint64(place.at, encodePacked(host, packed.length, header.clusterBits));
      table.tables.cache.markDirty(place.page);
      if (state.unpacked?.host === host) state.unpacked = null;
    } catch (error) {
      giveBack(space, host, packed.length, false);
      throw error;
    } finally {
      place.page.pins--;
      endAllocation(node, allocation);
    }
    scheduleWriteBack(map, node);
    return;
  }
}
