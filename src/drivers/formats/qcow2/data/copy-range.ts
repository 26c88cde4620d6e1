/**
 * Copies that the kernel makes out of the data file and into it: the mapping says from where and to where.
 *
 * Only data as it lies in the file can be copied so: neither compressed nor encrypted, and in whole clusters where new
 * ones are allocated. Everything else is left to reads and writes.
 */

import type { FilePlace, RangeSink } from '../../../../block/contract/copy-range.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { BlockNode } from '../../../../block/graph/node.ts';
import { co } from '../../../../block/io/callbacks.ts';
import { checkAlive } from '../layout/damage.ts';
import { type Allocation, Mapping, type Qcow2Node } from '../layout/state.ts';
import { isDebugged } from '../metadata/debug.ts';
import { lookup } from '../metadata/mapping.ts';
import { checkOverlap } from '../metadata/metadata-io.ts';
import { satisfy } from '../metadata/needs.ts';
import { flushMetadata } from '../metadata/writeback.ts';
import { abandonAllocation, copyOnWriteRange, linkAllocation, planWrite } from './allocation.ts';
import { planOn } from './plan-on.ts';

export function copyRangeVia(node: Qcow2Node): BlockNode | null {
  const { extras, dead, dataFile } = node.state;
  return extras.cipher !== null || dead || isDebugged(node) ? null : dataFile.node;
}

export async function copyRangeFrom(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  sink: RangeSink,
): Promise<boolean> {
  const s = node.state;
  // Whoever asked has looked at the top of the chain only.
  if (copyRangeVia(node) === null) return false;
  for (let at = 0; at < bytes; ) {
    checkAlive(node);
    const missing = lookup(s, offset + at, bytes - at);
    if (missing !== null) {
      await satisfy(node, guard, missing);
      continue;
    }
    const { kind, host, bytes: length } = s.found;
    const base = at;
    const take: RangeSink = (place, within, count) => sink(place, base + within, count);
    if (kind === Mapping.data) {
      if (!(await co.copyRangeFrom(s.dataFile.node, guard, host, length, take))) return false;
    } else if (kind === Mapping.unallocated || kind === Mapping.unallocatedInCluster) {
      const backing = node.child('backing')?.node;
      if (backing === undefined || offset + at + length > backing.totalBytes) return false;
      if (!(await co.copyRangeFrom(backing, guard, offset + at, length, take))) return false;
    } else {
      return false;
    }
    at += length;
  }
  return true;
}

export async function copyRangeTo(
  node: Qcow2Node,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  from: FilePlace,
): Promise<boolean> {
  const s = node.state;
  if (copyRangeVia(node) === null) return false;
  // What surrounds the data in its clusters would have to be copied as well.
  if (offset % s.clusterBytes !== 0 || bytes % s.clusterBytes !== 0) return false;
  for (let at = 0; at < bytes; ) {
    const start = offset + at;
    const plan = await planOn(node, guard, start, bytes - at, (length) => planWrite(node, start, length));
    const place = { fd: from.fd, offset: from.offset + at };
    const copied =
      plan.kind === 'in-place'
        ? await copyInPlace(node, guard, plan.host, plan.bytes, place)
        : await copyAllocating(node, guard, plan.allocation, start, plan.bytes, place);
    if (!copied) return false;
    at += plan.bytes;
  }
  if (s.l2Cache.size > s.l2Cache.capacity * 2) await flushMetadata(node, guard);
  return true;
}

function copyInPlace(
  node: Qcow2Node,
  guard: GraphReadGuard,
  host: number,
  bytes: number,
  from: FilePlace,
): Promise<boolean> {
  const s = node.state;
  if (!s.hasDataFile) checkOverlap(node, host, bytes, null);
  return co.copyRangeTo(s.dataFile.node, guard, host, bytes, from);
}

/** Fills guest [offset, offset+bytes) of the allocation, and links it. */
async function copyAllocating(
  node: Qcow2Node,
  guard: GraphReadGuard,
  allocation: Allocation,
  offset: number,
  bytes: number,
  from: FilePlace,
): Promise<boolean> {
  const { start, host } = allocation;
  let copied = false;
  try {
    // Behind subclusters that were there already only the rest of a cluster is new.
    const range = copyOnWriteRange(node.state, allocation, offset, bytes);
    const isWhole = range.from === offset && range.to === offset + bytes;
    copied = isWhole && (await copyInPlace(node, guard, host + (offset - start), bytes, from));
    checkAlive(node);
  } catch (error) {
    abandonAllocation(node, allocation);
    throw error;
  }
  if (copied) linkAllocation(node, allocation, offset, offset + bytes);
  else abandonAllocation(node, allocation);
  return copied;
}
