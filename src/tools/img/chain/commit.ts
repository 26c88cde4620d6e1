/**
 * `commit`: writes what an image holds into an image below it, and empties it, unless told not to.
 *
 * All data is on stable storage in the lower image before the upper one gives anything up: whenever this is broken off,
 * both show what they showed.
 */

import { Status } from '../../../block/contract/request.ts';
import { allZeroes, createMover } from '../../../block/copy/mover.ts';
import { cowChild, skipFilters } from '../../../block/graph/chain.ts';
import { drained } from '../../../block/graph/drain.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { wrapped } from '../../../block/io/callbacks.ts';
import { blockStatusAbove } from '../../../block/io/status-chain.ts';
import { findBackingImage } from '../../../block/open/backing-image.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoOf } from '../../../errors/error.ts';
import { makeWritable } from '../../../jobs/writable.ts';
import { openNamedImage } from '../../common/environment.ts';
import { createProgress, type Progress, progressMode } from '../../common/progress.ts';
import {
  type CommandContext,
  checkFormatGiven,
  readOptions,
  targetCache,
  UsageError,
} from '../common/command.ts';
import { Moves } from '../common/moves.ts';
import { createPace, parseRate } from '../common/pace.ts';
import { COMMIT } from '../tables/keeping.ts';

/** Bytes that are copied at once where there is a limit to bytes a second. */
const PACED_BYTES = 1024 * 1024;
const STATUS_BYTES = 1024 ** 3;

export async function commit(context: CommandContext, words: readonly string[]): Promise<number> {
  const given = { base: null, format: null, cache: 'writeback' } as Record<string, string | null>;
  let drop = false;
  let imageOpts = false;
  let quiet = false;
  let progressValue: string | null = null;
  let rate = 0;
  const operands = await readOptions(context, COMMIT, words, (name, value) => {
    if (name === 'drop') drop = true;
    else if (name === 'imageOpts') imageOpts = true;
    else if (name === 'quiet') quiet = true;
    else if (name === 'progress') progressValue = value;
    else if (name === 'rate') rate = parseRate(context.output, value);
    else given[name] = value;
  });
  const [name] = operands;
  if (name === undefined || operands.length !== 1) throw new UsageError('Expecting one image file name');
  checkFormatGiven(imageOpts, given.format ?? null);
  const cache = targetCache(given.cache ?? 'writeback');
  const image = await openNamedImage(context.environment(), {
    name,
    format: given.format ?? null,
    imageOpts,
    cache,
    write: true,
    unmap: true,
  });
  const top = image.node;
  const progress = createProgress(context.output, progressMode(progressValue, quiet), 1);
  try {
    progress.begin('commit', top.totalBytes);
    progress.add(0);
    const base = baseOf(top, name, given.base ?? null);
    // Below a base that is not the next image, what lies in between would show again in an emptied image.
    if (base !== cowBelow(top)) drop = true;
    // It is closed as it is when the tool ends.
    await makeWritable(base);
    await copyDown(top, base, rate, progress);
    await wrapped.flush(base);
    if (!drop) await empty(top);
    await image.close();
    progress.set(100);
  } finally {
    progress.end();
  }
  if (!quiet) context.output.print('Image committed.\n');
  return 0;
}

function cowBelow(node: BlockNode): BlockNode | null {
  const edge = cowChild(skipFilters(node));
  return edge === null ? null : skipFilters(edge.node);
}

function baseOf(top: BlockNode, imageName: string, name: string | null): BlockNode {
  if (name === null) {
    const below = cowBelow(top);
    if (below === null) throw new BlockError('Image does not have a backing file');
    return below;
  }
  const found = findBackingImage(top, name);
  if (found !== null) return found;
  throw new BlockError(`Did not find '${name}' in the backing chain of '${imageName}'`);
}

/** Copies what the images from `top` down to the one above `base` hold into `base`, which grows if it has to. */
async function copyDown(top: BlockNode, base: BlockNode, rate: number, progress: Progress): Promise<void> {
  const total = top.totalBytes;
  if (base.totalBytes < total) await wrapped.truncate(base, total, false, 'off', false);
  const { graphLock } = top.layer;
  const mover = createMover({
    source: () => top,
    target: () => base,
    clusterBytes: Math.max(base.limits.requestAlignment, 512),
    findZeroes: allZeroes,
    peeks: true,
  });
  const pace = createPace(rate);
  const passed = (bytes: number): void => progress.add((bytes / total) * 100);
  const moves = new Moves(mover, graphLock, passed);
  for (let at = 0; at < total && moves.failure === null; ) {
    const status = await graphLock.withRead((guard) =>
      blockStatusAbove(top, guard, base, true, at, Math.min(total - at, STATUS_BYTES)),
    );
    let { bytes } = status;
    if ((status.flags & Status.allocated) === 0) passed(bytes);
    else {
      const kind = (status.flags & Status.zero) !== 0 ? 'zero' : 'data';
      if (kind === 'data' && rate !== 0) bytes = Math.min(bytes, PACED_BYTES);
      await pace.wait(bytes);
      await moves.add(at, bytes, kind);
    }
    at += bytes;
  }
  const failure = await moves.end();
  if (failure !== null) throw failure.error;
}

/** What an image that cannot be emptied holds is what lies below it now: it may stay. */
async function empty(top: BlockNode): Promise<void> {
  try {
    await drained(top, () => wrapped.makeEmpty(top));
  } catch (error) {
    if (errnoOf(error) !== E.ENOTSUP) throw error;
  }
}
