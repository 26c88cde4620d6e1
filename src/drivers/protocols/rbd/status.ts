/** Block status of images of Ceph, from their object maps (feature fast-diff). */

import { addressOf } from '../../../aio/ffi.ts';
import { callPooled } from '../../../aio/host/pooled-calls.ts';
import { cellValue, pointerCell } from '../../../aio/libraries/host-library.ts';
import { FEATURE_FAST_DIFF, FLAG_FAST_DIFF_INVALID } from '../../../aio/libraries/librbd.ts';
import { type BlockStatus, Status } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import type { RbdState } from './rbd.ts';

/** Objects looked at for one answer: each one there is costs a call out of the library. */
const MAX_OBJECTS = 256;
/** Ends rbd_diff_iterate2; no errno. */
const ENOUGH = -9000;

/** Whether the image has an object map that can be relied on. */
async function hasObjectMap({ library, image, requests }: RbdState): Promise<boolean> {
  const cell = pointerCell();
  const { getFeatures, getFlags } = library.pooled;
  const features = await requests.waitFor(callPooled(getFeatures, image, addressOf(cell)), cell);
  if (features < 0 || (cellValue(cell) & FEATURE_FAST_DIFF) === 0) return false;
  const flags = await requests.waitFor(callPooled(getFlags, image, addressOf(cell)), cell);
  return flags >= 0 && (cellValue(cell) & FLAG_FAST_DIFF_INVALID) === 0;
}

/** The status at `offset`: where there is no object the image reads as zeroes. */
export async function blockStatus(
  node: BlockNode<RbdState>,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const { state } = node;
  const answer = (length: number, flag: number): BlockStatus => ({
    bytes: length,
    flags: flag | Status.offsetValid,
    map: offset,
    file: node,
  });
  // What is stored of an encrypted image lies elsewhere, behind a header.
  if (state.encryption !== null || !(await hasObjectMap(state))) return answer(bytes, Status.data);
  // Whole objects: librbd before 17.1 answers wrongly for pieces of them.
  const start = offset - (offset % state.objectBytes);
  const objects = Math.min(MAX_OBJECTS, Math.ceil((offset + bytes - start) / state.objectBytes));
  const end = start + objects * state.objectBytes;
  let dataFrom = -1;
  let dataTo = -1;
  const visit = (from: number | bigint, length: number | bigint, exists: number): number => {
    const at = Number(from);
    if (exists === 0) return 0;
    if (dataFrom < 0) {
      dataFrom = at;
      dataTo = at + Number(length);
      return dataFrom > offset ? ENOUGH : 0;
    }
    if (at !== dataTo) return ENOUGH;
    dataTo = at + Number(length);
    return 0;
  };
  const { diffIterate } = state.library.pooled;
  const span = Math.min(end, state.sizeBytes) - start;
  const result = await state.requests.waitFor(
    callPooled(diffIterate, state.image, null, start, span, 1, 1, visit, 0),
  );
  if (result < 0 && result !== ENOUGH) return answer(bytes, Status.data);
  const upTo = (place: number): number => Math.max(1, Math.min(place, offset + bytes, end) - offset);
  if (dataFrom < 0) return answer(upTo(end), Status.zero);
  return dataFrom > offset ? answer(upTo(dataFrom), Status.zero) : answer(upTo(dataTo), Status.data);
}
