/** Making the L1 table larger or moving it. Runs in exclusive sections. */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { MAX_L1_BYTES, viewOf } from '../layout/layout.ts';
import { rebuildMetadata } from '../layout/overlap.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { allocateContiguous } from './contiguous.ts';
import { debugEvent } from './debug.ts';
import { changeHeader, writeMetadata } from './metadata-io.ts';
import { deferFree, giveBack } from './refcount.ts';
import { flushMetadataLocked } from './writeback.ts';

/**
 * Gives the L1 table `entries` entries (or more), in a new place: the new table is on the disk before the header
 * points to it. Throws EFBIG beyond what the format's users accept.
 */
export async function growL1(node: Qcow2Node, guard: GraphReadGuard, entries: number): Promise<void> {
  const s = node.state;
  if (entries <= s.header.l1Entries) return;
  if (entries * 8 > MAX_L1_BYTES) throw ioError(E.EFBIG);
  const content = Buffer.alloc(Math.ceil((entries * 8) / 512) * 512);
  new Uint8Array(s.l1.buffer, s.l1.byteOffset, s.l1.byteLength).forEach((byte, at) => {
    content[at] = byte;
  });
  const clusters = Math.ceil((entries * 8) / s.clusterBytes);
  await debugEvent(node, guard, 'l1_grow_alloc_table');
  const run = await allocateContiguous(node, guard, clusters);
  const giveRunBack = (): void => giveBack(node, run.offset, run.count);
  try {
    await debugEvent(node, guard, 'l1_grow_write_table');
    await writeMetadata(node, guard, run.offset, content, null);
    await flushMetadataLocked(node, guard);
    await debugEvent(node, guard, 'l1_grow_activate_table');
  } catch (error) {
    giveRunBack();
    throw error;
  }
  const old = { offset: s.header.l1Offset, entries: s.header.l1Entries };
  await changeHeader(node, guard, { l1Offset: run.offset, l1Entries: entries }, giveRunBack);
  s.l1 = viewOf(content.subarray(0, entries * 8));
  rebuildMetadata(s);
  if (old.entries > 0) deferFree(node, old.offset, Math.ceil((old.entries * 8) / s.clusterBytes), 'other');
}
