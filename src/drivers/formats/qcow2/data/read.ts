/**
 * Reading guest data: from this image's clusters, from the backing image, or nothing but zeroes.
 *
 * The usual case (the whole range is one run of data, its table slice in memory) hands the child's promise straight
 * on. Everything else goes extent by extent, several at a time.
 */

import {
  allocateIoMemory,
  copyToVector,
  fillVector,
  type IoVector,
  sliceVector,
  vectorOf,
} from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { ShortRequest } from '../../../../block/contract/short-request.ts';
import { co, sync } from '../../../../block/io/callbacks.ts';
import { decryptBulk } from '../../../crypto/bulk.ts';
import { addPart, runParts } from '../../shared/parts.ts';
import { checkAlive } from '../layout/damage.ts';
import { decodeCompressed } from '../layout/layout.ts';
import { Mapping, type Qcow2Node } from '../layout/state.ts';
import { toRequestError } from '../metadata/corruption.ts';
import { debugEvent, isDebugged } from '../metadata/debug.ts';
import { lookup } from '../metadata/mapping.ts';
import { satisfy, tryLookup } from '../metadata/needs.ts';
import {
  continuesRun,
  type PackedCluster,
  readCompressed,
  readRun,
  tryReadCompressed,
} from './compressed-read.ts';

/** Extents of one request that are read at the same time. */
const MAX_PARALLEL = 8;

/** Longest request of several extents that is read within a turn. */
const PARTS_IN_TURN_BYTES = 512 * 1024;

/** Reads within this turn, if all tables can be had at once; or begins to, what is one extent. */
export function tryPreadv(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  short: ShortRequest | null,
): boolean {
  if (!tryLookup(node, guard, offset, bytes)) return false;
  const { found } = node.state;
  if (found.bytes === bytes) return tryFound(node, guard, offset, vec, short);
  if (bytes > PARTS_IN_TURN_BYTES || vec.segments.length !== 1) return false;
  for (let at = 0; at < bytes; ) {
    if (at > 0 && !tryLookup(node, guard, offset + at, bytes - at)) return false;
    const length = found.bytes;
    if (!tryFound(node, guard, offset + at, sliceVector(vec, at, length), null)) return false;
    at += length;
  }
  return true;
}

/** Reads the extent that the last lookup has found, of `vec.bytes`. */
function tryFound(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  vec: IoVector,
  short: ShortRequest | null,
): boolean {
  const s = node.state;
  const { found } = s;
  const { bytes } = vec;
  switch (found.kind) {
    case Mapping.data:
      return sync.tryPreadv(s.dataFile.node, guard, found.host, bytes, vec, short);
    case Mapping.compressed:
      return (
        vec.segments.length === 1 &&
        tryReadCompressed(node, guard, found.entryHi, found.entryLo, offset % s.clusterBytes, vec)
      );
    case Mapping.zero:
    case Mapping.zeroAllocated:
      fillVector(vec, 0);
      return true;
    default: {
      const backing = node.child('backing')?.node;
      if (backing === undefined) {
        fillVector(vec, 0);
        return true;
      }
      if (isDebugged(node)) return false;
      return (
        offset + bytes <= backing.totalBytes && sync.tryPreadv(backing, guard, offset, bytes, vec, short)
      );
    }
  }
}

export function preadv(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  return tryPreadv(node, guard, offset, bytes, vec, null)
    ? DONE
    : readExtents(node, guard, offset, bytes, vec);
}

/** Reads what this image does not hold. */
export function readBacking(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const backing = node.child('backing')?.node;
  const available = backing === undefined ? 0 : Math.max(0, Math.min(bytes, backing.totalBytes - offset));
  if (available < bytes) fillVector(sliceVector(vec, available, bytes - available), 0);
  if (available === 0) return DONE;
  const read = (): Promise<void> =>
    co.preadv(backing!, guard, offset, available, sliceVector(vec, 0, available), 0);
  return isDebugged(node) ? debugEvent(node, guard, 'read_backing_aio').then(read) : read();
}

const DONE = Promise.resolve();

/** Reads [offset, offset+bytes) extent by extent. */
export async function readExtents(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const s = node.state;
  let at = 0;
  try {
    await runParts(MAX_PARALLEL, async (parts) => {
      if (at >= bytes) return false;
      checkAlive(node);
      const missing = lookup(s, offset + at, bytes - at);
      if (missing !== null) {
        await satisfy(node, guard, missing);
        return true;
      }
      const { bytes: length } = s.found;
      if (s.found.kind === Mapping.compressed && !isDebugged(node)) {
        const run = packedRun(node, offset + at, bytes - at, sliceVector(vec, at, bytes - at));
        if (run.length > 1) {
          for (const one of run) at += one.vec.bytes;
          await addPart(parts, readRun(node, guard, run));
          return true;
        }
        // Looking for more has moved on.
        lookup(s, offset + at, bytes - at);
      }
      const read = readFound(node, guard, offset + at, length, sliceVector(vec, at, length));
      at += length;
      await addPart(parts, read);
      return true;
    });
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
}

/**
 * The compressed clusters from `offset` on that lie one behind the other in the file, as far as tables in memory tell. The
 * last lookup has found the first.
 */
function packedRun(node: Qcow2Node, offset: number, bytes: number, vec: IoVector): PackedCluster[] {
  const s = node.state;
  const run: PackedCluster[] = [];
  for (let at = 0; ; ) {
    const { entryHi, entryLo, bytes: length } = s.found;
    const one: PackedCluster = {
      ...decodeCompressed(entryHi, entryLo, s.clusterBits),
      offsetInCluster: (offset + at) % s.clusterBytes,
      vec: sliceVector(vec, at, length),
    };
    if (run.length > 0 && !continuesRun(run[0]!, run.at(-1)!, one)) return run;
    run.push(one);
    at += length;
    if (at >= bytes || lookup(s, offset + at, bytes - at) !== null) return run;
    if (s.found.kind !== Mapping.compressed) return run;
  }
}

/** Reads the extent that the last lookup has found. Starts synchronously: s.found is used before anything waits. */
function readFound(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const s = node.state;
  const { kind, host } = s.found;
  switch (kind) {
    case Mapping.data:
      if (isDebugged(node)) {
        return debugEvent(node, guard, 'read_aio').then(() =>
          readData(node, guard, offset, host, bytes, vec),
        );
      }
      return readData(node, guard, offset, host, bytes, vec);
    case Mapping.unallocated:
    case Mapping.unallocatedInCluster:
      return readBacking(node, guard, offset, bytes, vec);
    case Mapping.compressed: {
      const { entryHi, entryLo } = s.found;
      const offsetInCluster = offset % s.clusterBytes;
      if (vec.segments.length === 1 && tryReadCompressed(node, guard, entryHi, entryLo, offsetInCluster, vec))
        return DONE;
      return readCompressed(node, guard, entryHi, entryLo, offsetInCluster, vec);
    }
    default:
      fillVector(vec, 0);
      return DONE;
  }
}

function readData(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  host: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const s = node.state;
  return s.extras.cipher === null
    ? co.preadv(s.dataFile.node, guard, host, bytes, vec, 0)
    : readEncrypted(node, guard, offset, host, bytes, vec);
}

async function readEncrypted(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  host: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { dataFile, extras } = node.state;
  const [segment] = vec.segments;
  const start = extras.cipherUsesHostOffset ? host : offset;
  if (segment !== undefined && vec.segments.length === 1) {
    // Decrypted where it was read to.
    await co.preadv(dataFile.node, guard, host, bytes, vec, 0);
    const target = segment.mem.buf.subarray(segment.start, segment.start + segment.length);
    await decryptBulk(extras.cipher!, target, start);
    return;
  }
  const mem = allocateIoMemory(bytes);
  await co.preadv(dataFile.node, guard, host, bytes, vectorOf(mem), 0);
  await decryptBulk(extras.cipher!, mem.buf, start);
  copyToVector(vec, mem.buf);
}
