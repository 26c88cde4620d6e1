/**
 * Reading compressed clusters. The codecs are src/drivers/compress; they run beside the event loop, so several clusters
 * are decompressed at once. Source: qcow2 specification, "Compressed Clusters Descriptor".
 */

import { allocateIoMemory, copyToVector, type IoVector, vectorOf } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co, sync } from '../../../../block/io/callbacks.ts';
import { decompressCluster, decompressNow } from '../../../compress/codec.ts';
import { decodeCompressed } from '../layout/layout.ts';
import type { Qcow2Node, Qcow2State, UnpackMemory } from '../layout/state.ts';
import { debugEvent } from '../metadata/debug.ts';

/** The codec of the image. */
export function codecOf(s: Qcow2State): 'zlib' | 'zstd' {
  return s.header.compressionType === 1 ? 'zstd' : 'zlib';
}

function unpackMemory(s: Qcow2State): UnpackMemory {
  // Compressed data may begin and end in the middle of sectors.
  s.unpackMemory ??= {
    packed: allocateIoMemory(s.clusterBytes + 1024),
    plain: allocateIoMemory(s.clusterBytes),
  };
  return s.unpackMemory;
}

/** As readCompressed, within this turn; false: that would need waiting, or something is wrong. `vec` has one segment. */
export function tryReadCompressed(
  node: Qcow2Node,
  guard: GraphReadGuard,
  entryHi: number,
  entryLo: number,
  offsetInCluster: number,
  vec: IoVector,
): boolean {
  const s = node.state;
  const { offset, bytes } = decodeCompressed(entryHi, entryLo, s.clusterBits);
  const { packed, plain } = unpackMemory(s);
  if (bytes > packed.buf.length) return false;
  if (!sync.tryPreadv(s.file.node, guard, offset, bytes, vectorOf(packed, 0, bytes))) return false;
  const input = { address: packed.addr, length: bytes };
  const { mem, start } = vec.segments[0]!;
  const isWhole = vec.bytes === s.clusterBytes;
  const output = { address: isWhole ? mem.addr + start : plain.addr, length: s.clusterBytes };
  if (!decompressNow(codecOf(s), packed.buf.subarray(0, bytes), input, output)) return false;
  if (!isWhole) plain.buf.copy(mem.buf, start, offsetInCluster, offsetInCluster + vec.bytes);
  return true;
}

/** Reads part of a compressed cluster: from `offsetInCluster` as much as `vec` takes. */
export async function readCompressed(
  node: Qcow2Node,
  guard: GraphReadGuard,
  entryHi: number,
  entryLo: number,
  offsetInCluster: number,
  vec: IoVector,
): Promise<void> {
  const s = node.state;
  const { offset, bytes } = decodeCompressed(entryHi, entryLo, s.clusterBits);
  const mem = allocateIoMemory(bytes);
  await debugEvent(node, guard, 'read_compressed');
  await co.preadv(s.file.node, guard, offset, bytes, vectorOf(mem), 0);
  const cluster = await decompressCluster(codecOf(s), mem.buf, s.clusterBytes);
  copyToVector(vec, cluster.subarray(offsetInCluster, offsetInCluster + vec.bytes));
}
