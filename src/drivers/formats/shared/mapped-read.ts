/**
 * Reading guest data of an image that maps blocks, and telling what is where.
 *
 * The usual case (one extent, its table in memory) hands the child's promise straight on, or reads in the turn.
 * Everything else goes extent by extent, several at a time.
 */

import { fillVector, type IoVector, sliceVector } from '../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { type BlockStatus, Status } from '../../../block/contract/request.ts';
import type { ShortRequest } from '../../../block/contract/short-request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { co, sync } from '../../../block/io/callbacks.ts';
import { E } from '../../../errors/errno.ts';
import { ioError } from '../../../errors/error.ts';
import { type BlockMap, type Found, type MappedState, Place } from './mapped-image.ts';
import { addPart, runParts } from './parts.ts';
import { loadTable, tryLoadTable } from './table-io.ts';

/** Extents of one request that are read at the same time. */
const MAX_PARALLEL = 8;
const DONE = Promise.resolve();

/** Reads within this turn what is one extent, if its table and its data can be had at once. */
export function tryReadMapped<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
  short: ShortRequest | null,
): boolean {
  if (!tryLookup(map, node, guard, offset, bytes)) return false;
  const { found } = node.state;
  if (found.bytes !== bytes) return false;
  switch (found.kind) {
    case Place.data:
      return sync.tryPreadv(found.child!.node, guard, found.host, bytes, vec, short);
    case Place.packed:
      return false;
    case Place.hole: {
      const backing = node.child('backing');
      if (backing !== null && offset < backing.node.totalBytes)
        return (
          offset + bytes <= backing.node.totalBytes &&
          sync.tryPreadv(backing.node, guard, offset, bytes, vec, short)
        );
      fillVector(vec, 0);
      return true;
    }
    default:
      fillVector(vec, 0);
      return true;
  }
}

/** Looks up within this turn; false: that needs waiting, or there is damage, which the long way reports. */
export function tryLookup<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): boolean {
  try {
    const missing = map.lookup(node, offset, bytes);
    return missing === null || (tryLoadTable(missing, guard) && map.lookup(node, offset, bytes) === null);
  } catch {
    return false;
  }
}

/** Looks up. The result is a copy: others may look up before whoever awaits this goes on. */
export async function lookUp<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<Found> {
  for (;;) {
    const missing = map.lookup(node, offset, bytes);
    if (missing === null) return { ...node.state.found };
    await loadTable(missing, guard);
  }
}

export function readMapped<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  const { found } = node.state;
  if (tryLookup(map, node, guard, offset, bytes) && found.bytes === bytes)
    return readFound(map, node, guard, offset, vec);
  return readExtents(map, node, guard, offset, bytes, vec);
}

async function readExtents<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  vec: IoVector,
): Promise<void> {
  let at = 0;
  await runParts(MAX_PARALLEL, async (parts) => {
    if (at >= bytes) return false;
    const missing = map.lookup(node, offset + at, bytes - at);
    if (missing !== null) {
      await loadTable(missing, guard);
      return true;
    }
    const length = node.state.found.bytes;
    const read = readFound(map, node, guard, offset + at, sliceVector(vec, at, length));
    at += length;
    await addPart(parts, read);
    return true;
  });
}

/** Reads the extent that the last lookup has found. Starts synchronously: it is used before anything waits. */
function readFound<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  vec: IoVector,
): Promise<void> {
  const { kind, host, child } = node.state.found;
  switch (kind) {
    case Place.data:
      return co.preadv(child!.node, guard, host, vec.bytes, vec, 0);
    case Place.hole:
      return readBacking(node, guard, offset, vec);
    case Place.packed:
      if (map.readPacked === undefined) return Promise.reject(ioError(E.EIO));
      return map.readPacked(node, guard, { child: child!, host, offset }, vec);
    default:
      fillVector(vec, 0);
      return DONE;
  }
}

/** What the backing image has; behind its end, or without one, zeroes. */
function readBacking(node: BlockNode, guard: GraphReadGuard, offset: number, vec: IoVector): Promise<void> {
  const backing = node.child('backing');
  const inside = backing === null ? 0 : Math.max(0, Math.min(vec.bytes, backing.node.totalBytes - offset));
  if (inside < vec.bytes) fillVector(sliceVector(vec, inside, vec.bytes - inside), 0);
  if (inside === 0) return DONE;
  return co.preadv(backing!.node, guard, offset, inside, sliceVector(vec, 0, inside), 0);
}

/** Block status: the extent that a lookup finds, and what follows it in the same way. */
export async function mappedStatus<S extends MappedState>(
  map: BlockMap<S>,
  node: BlockNode<S>,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const { kind, host, child, bytes: length } = await lookUp(map, node, guard, offset, bytes);
  switch (kind) {
    case Place.data: {
      const flags = Status.data | Status.offsetValid;
      const isFinal = map.showsHoles?.(node, offset) !== true;
      return { bytes: length, flags: isFinal ? flags | Status.final : flags, map: host, file: child!.node };
    }
    case Place.packed:
      return { bytes: length, flags: Status.data | Status.compressed, map: 0, file: null };
    case Place.zero:
      return { bytes: length, flags: Status.zero, map: 0, file: null };
    default:
      return { bytes: length, flags: 0, map: 0, file: null };
  }
}
