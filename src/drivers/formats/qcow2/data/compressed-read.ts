/**
 * Reading compressed clusters. The codecs are src/drivers/compress; they run beside the event loop, so several clusters
 * are decompressed at once. Clusters that lie one behind the other in the file are read by one request: where the file is
 * elsewhere each request costs a way there and back. Source: qcow2 specification, "Compressed Clusters Descriptor".
 */

import { createTurns } from '../../../../aio/host/turns.ts';
import { allocateIoMemory, copyToVector, type IoVector, vectorOf } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { co, sync } from '../../../../block/io/callbacks.ts';
import { decompressCluster, decompressNow } from '../../../compress/codec.ts';
import { decodeCompressed } from '../layout/layout.ts';
import type { Qcow2Node, Qcow2State, UnpackMemory } from '../layout/state.ts';
import { debugEvent } from '../metadata/debug.ts';

/** How long clusters are decompressed before others have their turn. */
const TURN_MS = 1;

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

/** A compressed cluster of a run: its place in the file, and where its data go. */
export interface PackedCluster {
  readonly offset: number;
  readonly bytes: number;
  readonly offsetInCluster: number;
  readonly vec: IoVector;
}

/** Bytes of the file that are read at once at most. */
const MAX_RUN_BYTES = 1024 * 1024;

/** Whether `next` lies where a run of clusters that begins with `first` and ends with `last` goes on. */
export function continuesRun(first: PackedCluster, last: PackedCluster, next: PackedCluster): boolean {
  const end = last.offset + last.bytes;
  // The length of a compressed cluster is known in sectors: the next may begin in its last one.
  return (
    next.offset > last.offset &&
    next.offset <= end &&
    next.offset + next.bytes - first.offset <= MAX_RUN_BYTES
  );
}

/** Reads clusters that lie one behind the other. */
export async function readRun(
  node: Qcow2Node,
  guard: GraphReadGuard,
  run: readonly PackedCluster[],
): Promise<void> {
  const s = node.state;
  const start = run[0]!.offset;
  const end = run.at(-1)!.offset + run.at(-1)!.bytes;
  const mem = allocateIoMemory(end - start);
  await co.preadv(s.file.node, guard, start, end - start, vectorOf(mem), 0);
  const codec = codecOf(s);
  const turns = createTurns(TURN_MS);
  const slow: Promise<void>[] = [];
  const failures: unknown[] = [];
  for (const { offset, bytes, offsetInCluster, vec } of run) {
    const at = offset - start;
    const packed = mem.buf.subarray(at, at + bytes);
    const [segment] = vec.segments;
    const isWhole = vec.bytes === s.clusterBytes && vec.segments.length === 1;
    const input = { address: mem.addr + at, length: bytes };
    if (
      !isWhole ||
      !decompressNow(codec, packed, input, {
        address: segment!.mem.addr + segment!.start,
        length: s.clusterBytes,
      })
    )
      slow.push(
        decompressCluster(codec, packed, s.clusterBytes).then(
          (cluster) => copyToVector(vec, cluster.subarray(offsetInCluster, offsetInCluster + vec.bytes)),
          // It may be over before anybody waits for it.
          (error) => void failures.push(error),
        ),
      );
    await turns.next();
  }
  // The memory is the caller's again when all are over.
  await Promise.all(slow);
  if (failures.length > 0) throw failures[0];
}
