/**
 * The state of a virtual machine: guest data behind the end of the disk, from the first L2 table on that maps nothing
 * of it. Snapshots keep it, because they keep the whole L1 table.
 * Source: qcow2 specification, "Snapshots" ("VM state").
 */

import type { IoVector } from '../../../../aio/memory.ts';
import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import type { VmStateIo } from '../../../../block/contract/image.ts';
import { waitSerialising } from '../../../../block/graph/tracked.ts';
import { begin, end } from '../../../../block/io/common.ts';
import { E } from '../../../../errors/errno.ts';
import { ioError } from '../../../../errors/error.ts';
import { preadv } from '../data/read.ts';
import { pwritev } from '../data/write.ts';
import type { Qcow2Node, Qcow2State } from '../layout/state.ts';
import { debugEvent } from '../metadata/debug.ts';
import { exclusive } from '../metadata/exclusive.ts';
import { growL1 } from '../metadata/l1-table.ts';

/** Guest offset where the state begins, in bytes. */
export function vmStateOffset(s: Qcow2State): number {
  return Math.ceil(s.header.size / s.l2SpanBytes) * s.l2SpanBytes;
}

export const vmState: VmStateIo<Qcow2State> = {
  async read(node, guard, offset, vec) {
    const at = checkedOffset(node, offset, vec.bytes);
    await debugEvent(node, guard, 'vmstate_load');
    await tracked(node, at, vec.bytes, () => preadv(node, guard, at, vec.bytes, vec));
  },

  async write(node, guard, offset, vec) {
    const at = checkedOffset(node, offset, vec.bytes);
    if (vec.bytes === 0) return;
    await debugEvent(node, guard, 'vmstate_save');
    await makeRoom(node, guard, at + vec.bytes);
    await tracked(node, at, vec.bytes, () => writeAt(node, guard, at, vec));
  },
};

function checkedOffset(node: Qcow2Node, offset: number, bytes: number): number {
  const at = vmStateOffset(node.state) + offset;
  if (!(offset >= 0 && at + bytes <= Number.MAX_SAFE_INTEGER)) throw ioError(E.EFBIG);
  return at;
}

/** Makes the L1 table reach up to `endOffset`. */
async function makeRoom(node: Qcow2Node, guard: GraphReadGuard, endOffset: number): Promise<void> {
  const entries = Math.ceil(endOffset / node.state.l2SpanBytes);
  if (entries <= node.state.header.l1Entries) return;
  await exclusive(node, guard, () => growL1(node, guard, entries));
}

async function writeAt(node: Qcow2Node, guard: GraphReadGuard, at: number, vec: IoVector): Promise<void> {
  try {
    await pwritev(node, guard, at, vec.bytes, vec, 0);
  } finally {
    // Behind the end of the disk: neither its length nor its bitmaps change, but a flush has something to do.
    node.writeGeneration++;
  }
}

async function tracked(node: Qcow2Node, at: number, bytes: number, run: () => Promise<void>): Promise<void> {
  const request = begin(node, at, bytes, 'other');
  try {
    if (node.tracked.serialising > 0) await waitSerialising(node.tracked, request);
    await run();
  } finally {
    end(node, request);
  }
}
