/**
 * The I/O path of copies that the kernel makes from one file to another: no data comes into this process, and a file
 * system that can share blocks does not copy at all.
 *
 * Possible where both nodes are nothing but windows into files (BlockDriver.localPlace). Requests are tracked in every
 * node on the way, as if each had been read or written. What cannot be done this way is the caller's to do with reads
 * and writes, which also tell what is wrong.
 */

import { copyFileRangeAsync } from '../aio/ffi.ts';
import type { GraphReadGuard } from './graph-lock.ts';
import { begin, checkRange, end, wrote, wroteInPart } from './io-common.ts';
import type { BlockNode } from './node.ts';
import { type TrackedRequest, waitSerialising } from './tracked.ts';

/** A step of the way from a node down to the file. */
interface Step {
  readonly node: BlockNode;
  readonly offset: number;
}

interface Way {
  readonly steps: readonly Step[];
  readonly fd: number;
  readonly offset: number;
}

function wayDown(top: BlockNode, topOffset: number, bytes: number, isWrite: boolean): Way | null {
  const steps: Step[] = [];
  let node = top;
  let offset = topOffset;
  for (;;) {
    const { limits } = node;
    const align = limits.requestAlignment;
    if (offset % align !== 0 || bytes % align !== 0) return null;
    if (limits.maxTransfer !== 0 && bytes > limits.maxTransfer) return null;
    if (isWrite && (node.readOnly || node.settings.detectZeroes !== 'off')) return null;
    steps.push({ node, offset });
    const place = node.driver.localPlace?.(node, offset, bytes) ?? null;
    if (place === null) return null;
    if ('fd' in place) return { steps, fd: place.fd, offset: place.offset };
    ({ node, offset } = place);
  }
}

/** Whether the kernel may be able to copy between the nodes. */
export function canCopyRange(source: BlockNode, target: BlockNode, guard: GraphReadGuard): boolean {
  return waysOf(source, guard, 0, target, 0, 0) !== null;
}

function waysOf(
  source: BlockNode,
  _guard: GraphReadGuard,
  sourceOffset: number,
  target: BlockNode,
  targetOffset: number,
  bytes: number,
): { readonly from: Way; readonly to: Way } | null {
  const from = wayDown(source, sourceOffset, bytes, false);
  const to = from === null ? null : wayDown(target, targetOffset, bytes, true);
  return from === null || to === null ? null : { from, to };
}

/**
 * Copies [sourceOffset, +bytes) of `source` to `targetOffset` of `target`. False: not all of it has been copied, and
 * the range of the target has the content it had, or the new one in part.
 */
export async function coCopyRange(
  source: BlockNode,
  guard: GraphReadGuard,
  sourceOffset: number,
  target: BlockNode,
  targetOffset: number,
  bytes: number,
): Promise<boolean> {
  checkRange(sourceOffset, bytes);
  checkRange(targetOffset, bytes);
  const ways = waysOf(source, guard, sourceOffset, target, targetOffset, bytes);
  if (ways === null) return false;
  const { from, to } = ways;
  const begun: { readonly node: BlockNode; readonly request: TrackedRequest }[] = [];
  try {
    for (const { node, offset } of [...from.steps, ...to.steps]) {
      const request = begin(node, offset, bytes);
      begun.push({ node, request });
      if (node.tracked.serialising > 0) await waitSerialising(node.tracked, request);
    }
    const copied = await copyFully(from, to, bytes);
    // From the file upwards, as writes end.
    for (const { node, offset } of to.steps.toReversed()) (copied ? wrote : wroteInPart)(node, offset, bytes);
    return copied;
  } finally {
    for (const { node, request } of begun.reverse()) end(node, request);
  }
}

async function copyFully(from: Way, to: Way, bytes: number): Promise<boolean> {
  for (let done = 0; done < bytes; ) {
    const copied = await copyFileRangeAsync(
      from.fd,
      from.offset + done,
      to.fd,
      to.offset + done,
      bytes - done,
    );
    // 0: the source ends here; what is behind its end reads as zeroes.
    if (copied <= 0) return false;
    done += copied;
  }
  return true;
}
