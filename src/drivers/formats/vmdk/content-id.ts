/**
 * The content id: a number in the descriptor that changes with the first write after an opening, so that images above
 * this one can tell that what is below them has changed.
 */

import { randomBytes } from 'node:crypto';
import type { GraphReadGuard } from '../../../block/contract/guard.ts';
import { writeBytes } from '../shared/table-io.ts';
import { NO_PARENT_CID, withContentId } from './descriptor.ts';
import type { VmdkNode } from './state.ts';

export function newContentId(): number {
  for (;;) {
    const cid = randomBytes(4).readUInt32LE(0);
    if (cid !== 0 && cid < NO_PARENT_CID - 1) return cid;
  }
}

/** Changes the content id, once; to be awaited before the first write. */
export function changeContentId(node: VmdkNode, guard: GraphReadGuard): Promise<void> {
  const { state } = node;
  state.changingCid ??= change(node, guard).finally(() => {
    state.changingCid = null;
  });
  return state.changingCid;
}

async function change({ state }: VmdkNode, guard: GraphReadGuard): Promise<void> {
  if (state.cidChanged) return;
  if (state.descriptorAt !== null) {
    const cid = newContentId();
    // A shorter number than eight digits is written with all of them: the text grows by as many.
    const text = withContentId(state.descriptor.text, cid);
    await writeBytes(state.file, guard, state.descriptorAt, Buffer.from(text, 'utf8'));
    state.descriptor = { ...state.descriptor, cid, text };
  }
  state.cidChanged = true;
}
