/**
 * Reading compressed clusters. The codecs are src/drivers/compress; they run beside the event loop, so several clusters
 * are decompressed at once. Source: qcow2 specification, "Compressed Clusters Descriptor".
 */

import { allocateIoMemory, copyToVector, type IoVector, vectorOf } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { decompressCluster } from '../../../compress/codec.ts';
import { decodeCompressed } from '../layout/layout.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { debugEvent } from '../metadata/debug.ts';

/** The codec of the image. */
export function codecOf(s: Qcow2State): 'zlib' | 'zstd' {
  return s.header.compressionType === 1 ? 'zstd' : 'zlib';
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
