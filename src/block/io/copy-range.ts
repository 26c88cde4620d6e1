/**
 * The I/O path of copies that the kernel makes from one file to another: no data comes into this process, and a file
 * system that can share blocks does not copy at all.
 *
 * A copy goes down from the source to its file, and from there, through the sink, down from the target to its own; at
 * every node it is tracked as if it had been read or written. What cannot be done this way is the caller's to do with
 * reads and writes, which also tell what is wrong: nothing here reports an error. Nor is it decided here for the caller
 * that the kernel copies: whether it is any good at it says copiesByKernel.
 */

import { kernelSharesData } from '../../aio/host/kernel-copies.ts';
import type { FilePlace, LocalFile, RangeSink } from '../contract/copy-range.ts';
import type { GraphReadGuard } from '../contract/guard.ts';
import type { BlockNode } from '../graph/node.ts';
import { waitSerialising } from '../graph/tracked.ts';
import { begin, checkRange, end, wrote, wroteInPart } from './common.ts';
import { isPastEnd } from './past-end.ts';
import { checkWriteThreshold } from './write-threshold.ts';

/** Less is not worth the way through a thread. */
export const MIN_KERNEL_BYTES = 128 * 1024;

/** Whether the kernel may be able to copy between the nodes: data lies in local files as the nodes show it. */
export function canCopyRange(source: BlockNode, target: BlockNode, _guard: GraphReadGuard): boolean {
  return localFile(source) !== null && localFile(target) !== null && !changesData(target);
}

/**
 * Whether the kernel is to copy between the nodes: it can, and shares the data or has a server copy them. Everywhere else
 * reads and writes are as good or better. All who copy ask here. The target is open for writing.
 */
export function copiesByKernel(source: BlockNode, target: BlockNode, _guard: GraphReadGuard): boolean {
  return !changesData(target) && areShared(source, target);
}

/** As copiesByKernel, for writes past the target's own options. */
export function areShared(source: BlockNode, target: BlockNode): boolean {
  const [from, to] = [localFile(source), localFile(target)];
  if (from === null || to === null) return false;
  if (to.lastSource?.file !== from)
    to.lastSource = { file: from, isShared: kernelSharesData(from.fd, to.fd) };
  return to.lastSource.isShared;
}

/** Has the kernel begin to write what is dirty in the local file of a node to the disk; a flush will come. No waiting, no error. */
export function beginWriteback(node: BlockNode): void {
  let at = node;
  for (;;) {
    const next: BlockNode | LocalFile | null = at.driver.copyRangeVia?.(at) ?? null;
    if (next === null) return;
    if ('fd' in next) break;
    at = next;
  }
  at.driver.beginWriteback?.(at);
}

/** The local file in which the data of a node lies as the node shows it; null: there is no such file. */
function localFile(node: BlockNode): LocalFile | null {
  let at: BlockNode | LocalFile | null = node;
  while (at !== null && !('fd' in at)) at = at.driver.copyRangeVia?.(at) ?? null;
  return at;
}

function changesData({ readOnly, settings }: BlockNode): boolean {
  return readOnly || settings.detectZeroes !== 'off';
}

function fits({ limits }: BlockNode, offset: number, bytes: number): boolean {
  const { requestAlignment: align, maxTransfer } = limits;
  return offset % align === 0 && bytes % align === 0 && (maxTransfer === 0 || bytes <= maxTransfer);
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
  if (!canCopyRange(source, target, guard)) return false;
  return coCopyRangeFrom(source, guard, sourceOffset, bytes, (place, at, length) =>
    coCopyRangeTo(target, guard, targetOffset + at, length, place),
  );
}

/** Gives [offset, offset+bytes) to the sink; see CopyRangeCallbacks. */
export async function coCopyRangeFrom(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  sink: RangeSink,
): Promise<boolean> {
  checkRange(offset, bytes);
  const { driver } = node;
  if (driver.copyRangeFrom === undefined || !fits(node, offset, bytes)) return false;
  // Behind its end a node reads as zeroes, whatever its driver would find there.
  if (offset + bytes > node.totalBytes) return false;
  const request = begin(node, offset, bytes, 'copy');
  try {
    if (node.tracked.serialising > 0) await waitSerialising(node.tracked, request);
    return await driver.copyRangeFrom(node, guard, offset, bytes, sink);
  } catch {
    return false;
  } finally {
    end(node, request);
  }
}

/** Writes what is at `from` to [offset, offset+bytes); see CopyRangeCallbacks. */
export async function coCopyRangeTo(
  node: BlockNode,
  guard: GraphReadGuard,
  offset: number,
  bytes: number,
  from: FilePlace,
): Promise<boolean> {
  checkRange(offset, bytes);
  const { driver } = node;
  if (driver.copyRangeTo === undefined || changesData(node) || !fits(node, offset, bytes)) return false;
  if (isPastEnd(node, offset, bytes)) return false;
  const request = begin(node, offset, bytes, 'copy');
  let copied = false;
  try {
    if (node.tracked.serialising > 0) await waitSerialising(node.tracked, request);
    if (node.writeThreshold !== 0) checkWriteThreshold(node, offset, bytes);
    copied = await driver.copyRangeTo(node, guard, offset, bytes, from);
  } catch {
    copied = false;
  } finally {
    (copied ? wrote : wroteInPart)(node, offset, bytes);
    end(node, request);
  }
  return copied;
}
