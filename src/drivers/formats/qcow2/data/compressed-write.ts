/**
 * Writing compressed clusters: packed one behind another into host clusters.
 *
 * Compressed data needs no alignment; several clusters share a host cluster, whose refcount counts them. The codecs
 * are src/drivers/compress; they run beside the event loop, so several clusters are compressed at once.
 * Source: qcow2 specification, "Compressed Clusters Descriptor".
 */

import {
  allocateIoMemory,
  copyFromVector,
  type IoMemory,
  type IoVector,
  sliceVector,
  vectorOf,
} from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { CoQueue } from '../../../../coroutine/co-queue.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { compressCluster, compressNow } from '../../../compress/codec.ts';
import { addPart, runParts } from '../../shared/parts.ts';
import { encodeCompressedHi, entryOffset, HI_COMPRESSED, offsetLo } from '../layout/layout.ts';
import type { Allocation, Need, Qcow2Node, Qcow2State } from '../layout/state.ts';
import { toRequestError } from '../metadata/corruption.ts';
import { debugEvent, isDebugged } from '../metadata/debug.ts';
import { l2IndexOf, setL2Bitmap, setL2Entry } from '../metadata/mapping.ts';
import { checkOverlap } from '../metadata/metadata-io.ts';
import { allocateRun, changeRefcount, getRefcount, giveBackBytes, isNeed } from '../metadata/refcount.ts';
import { scheduleWriteBack, withSpace } from '../metadata/writeback.ts';
import { abandonAllocation, endAllocation, freeOld, ownSlice } from './allocation.ts';
import { codecOf } from './compressed-read.ts';
import { planOn } from './plan-on.ts';
import { writeExtents } from './write.ts';

/** Clusters of one request that are compressed at the same time. */
const MAX_PARALLEL = 16;

/** Writes whole clusters compressed; a cluster that does not shrink is written as it is. */
export async function pwritevCompressed(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const s = node.state;
  if (s.hasDataFile || s.extras.cipher !== null) throw ioError(E.ENOTSUP);
  // The end of the image: nothing is held back here.
  if (bytes === 0) return;
  const end = offset + bytes;
  if (offset % s.clusterBytes !== 0 || (end % s.clusterBytes !== 0 && end !== node.totalBytes)) {
    throw ioError(E.EINVAL);
  }
  let at = 0;
  try {
    await runParts(MAX_PARALLEL, async (parts) => {
      if (at >= bytes) return false;
      const guest = offset + at;
      const part = sliceVector(vec, at, Math.min(s.clusterBytes, bytes - at));
      at += s.clusterBytes;
      await addPart(
        parts,
        withSpace(node, guard, () => writeCluster(node, guard, guest, part)),
      );
      return true;
    });
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
}

async function writeCluster(
  node: Qcow2Node,
  guard: GraphReadGuard,
  guest: number,
  vec: IoVector,
): Promise<void> {
  const s = node.state;
  const mem = await pack(s, vec);
  if (mem === null) return writeExtents(node, guard, guest, vec.bytes, vec, 0);
  const packed = mem.buf;
  const allocation = await planOn(node, guard, guest, s.clusterBytes, () =>
    planCompressed(node, guest, packed.length),
  );
  try {
    checkOverlap(node, allocation.host, packed.length, null);
    if (isDebugged(node)) {
      await debugEvent(node, guard, 'cluster_alloc_bytes');
      await debugEvent(node, guard, 'write_compressed');
    }
    await co.pwritev(s.file.node, guard, allocation.host, packed.length, vectorOf(mem), 0);
    if (isDebugged(node)) await debugEvent(node, guard, 'l2_update_compressed');
  } catch (error) {
    giveUpPlace(node, allocation, packed.length);
    throw error;
  }
  const l2Index = l2IndexOf(s, guest);
  freeOld(node, allocation.table, l2Index, 0, 'other');
  const hi = encodeCompressedHi(allocation.host, packed.length, s.clusterBits);
  setL2Entry(s, allocation.table, l2Index, hi, offsetLo(allocation.host));
  if (s.l2EntryBytes === 16) setL2Bitmap(s, allocation.table, l2Index, 0, 0);
  endAllocation(s, allocation);
  scheduleWriteBack(node);
}

/** The cluster compressed; null when that does not make it smaller. What is behind the end of the image is zeroes. */
async function pack(s: Qcow2State, vec: IoVector): Promise<IoMemory | null> {
  const type = codecOf(s);
  const { clusterBytes } = s;
  let { mem, start } = vec.segments[0]!;
  if (vec.segments.length !== 1 || vec.bytes !== clusterBytes) {
    mem = allocateIoMemory(clusterBytes);
    start = 0;
    copyFromVector(vec, mem.buf);
    mem.buf.fill(0, vec.bytes);
  }
  const output = allocateIoMemory(clusterBytes - 1);
  const now = compressNow(
    type,
    { address: mem.addr + start, length: clusterBytes },
    { address: output.addr, length: clusterBytes - 1 },
  );
  if (now === null) return null;
  if (now !== undefined) return { buf: output.buf.subarray(0, now), addr: output.addr };
  const packed = await compressCluster(type, mem.buf.subarray(start, start + clusterBytes));
  if (packed === null) return null;
  packed.copy(output.buf);
  return { buf: output.buf.subarray(0, packed.length), addr: output.addr };
}

function giveUpPlace(node: Qcow2Node, allocation: Allocation, bytes: number): void {
  giveBackBytes(node, allocation.host, bytes);
  abandonAllocation(node, allocation);
}

/**
 * Finds a place for `bytes` of compressed data and takes it. Throws EIO where the image has a cluster, compressed or
 * not, zero or not: as in the original, compression overwrites nothing.
 */
function planCompressed(node: Qcow2Node, guest: number, bytes: number): Allocation | Need {
  const s = node.state;
  const slice = ownSlice(node, guest);
  if (isNeed(slice)) return slice;
  const at = (l2IndexOf(s, guest) % s.sliceEntries) * s.l2EntryBytes;
  const hi = slice.view.getUint32(at);
  if ((hi & HI_COMPRESSED) !== 0 || entryOffset(hi, slice.view.getUint32(at + 4)) !== 0) throw ioError(E.EIO);
  const host = takePlace(s, bytes);
  if (isNeed(host)) return host;
  slice.pins++;
  const allocation: Allocation = {
    start: guest,
    end: guest + s.clusterBytes,
    host,
    fresh: false,
    // The place is given back by the writer: it is no whole cluster.
    keepsHost: true,
    table: slice,
    waiters: new CoQueue(),
  };
  s.allocations.push(allocation);
  return allocation;
}

function takePlace(s: Qcow2State, bytes: number): number | Need {
  const { clusterBytes } = s;
  const tail = s.compressedTail;
  let host = 0;
  if (tail !== 0) {
    const cluster = Math.floor(tail / clusterBytes);
    const left = clusterBytes - (tail % clusterBytes);
    const refcount = getRefcount(s, cluster);
    if (isNeed(refcount)) return refcount;
    if (refcount > 0 && refcount < s.maxRefcount) {
      if (bytes <= left) host = tail;
      else {
        const run = allocateRun(s, 1);
        if (isNeed(run)) return run;
        host = run.offset === (cluster + 1) * clusterBytes ? tail : run.offset;
      }
      // The block has just been read: this does not need it any more.
      if (host === tail) changeRefcount(s, cluster, 1);
    }
  }
  if (host === 0) {
    const run = allocateRun(s, 1);
    if (isNeed(run)) return run;
    host = run.offset;
  }
  const end = host + bytes;
  s.compressedTail = end % clusterBytes === 0 ? 0 : end;
  return host;
}
