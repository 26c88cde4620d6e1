/**
 * Exclusive sections: an operation that rebuilds the image runs as the only request inside the node.
 *
 * It is a tracked request over everything that serialises: it waits for the requests in flight and holds back those
 * that come later. Normal requests pay nothing for it. Metadata is settled before the section runs, so that it may
 * read tables from the disk; the metadata lock is held, so that no write-back comes between its steps.
 */

import type { GraphReadGuard } from '../../../../block/contract/guard.ts';
import { markSerialising, waitSerialising } from '../../../../block/graph/tracked.ts';
import { begin, end } from '../../../../block/io/common.ts';
import type { Qcow2Node } from '../layout/state.ts';
import { toRequestError } from './corruption.ts';
import { scheduleWriteBack, settleMetadata } from './writeback.ts';

/** Runs `section` alone in the node. Not for callers inside a request of this node (truncate: see `alone`). */
export async function exclusive<T>(
  node: Qcow2Node,
  guard: GraphReadGuard,
  section: () => Promise<T>,
): Promise<T> {
  const request = begin(node, 0, Number.POSITIVE_INFINITY, 'other');
  try {
    markSerialising(node.tracked, request, 1);
    await waitSerialising(node.tracked, request);
    return await alone(node, guard, section);
  } finally {
    end(node, request);
    // What the section freed waits for a write-back after this request's end.
    if (!node.readOnly) scheduleWriteBack(node);
  }
}

/** The inner part of an exclusive section, for callers that are the only request already. */
export async function alone<T>(
  node: Qcow2Node,
  guard: GraphReadGuard,
  section: () => Promise<T>,
): Promise<T> {
  if (!node.readOnly) await settleMetadata(node, guard);
  try {
    return await node.state.metadataLock.with('exclusive section', section);
  } catch (error) {
    throw await toRequestError(node, guard, error);
  }
}
