/**
 * `rebase`: gives an image another backing file. Unless told that this is not needed (-u), what the image shows stays
 * what it is: data in which the old and the new backing image differ is copied into the image first.
 *
 * The header changes last, when all that was copied is on stable storage: an image whose rebase was broken off still has
 * its old backing file and shows the same.
 */

import { createTurns } from '../../../aio/host/turns.ts';
import { allocateIoMemory, type IoMemory, type IoVector, isZero, vectorOf } from '../../../aio/memory.ts';
import type { BlockBackend } from '../../../block/backend.ts';
import { Req, Status } from '../../../block/contract/request.ts';
import { IN_TURN_BYTES } from '../../../block/copy/mover.ts';
import { cowChild, skipFilters } from '../../../block/graph/chain.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { infoOrNull } from '../../../block/io/callbacks.ts';
import { blockStatusAbove } from '../../../block/io/status-chain.ts';
import { findBackingImage, writeBackingName } from '../../../block/open/backing-image.ts';
import { relativeName } from '../../../block/open/image-name.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, prefixed } from '../../../errors/error.ts';
import { openNamedImage, openToolImage, type ToolImage } from '../../common/environment.ts';
import { createProgress, type Progress, progressMode } from '../../common/progress.ts';
import {
  type CommandContext,
  checkFormatGiven,
  readOptions,
  sourceCache,
  targetCache,
  UsageError,
} from '../common/command.ts';
import { REBASE } from '../tables/keeping.ts';

const STATUS_BYTES = 1024 ** 3;

interface Request {
  backing: string | null;
  backingFormat: string | null;
  format: string | null;
  cache: string;
  sourceCache: string;
  unsafe: boolean;
  compress: boolean;
  imageOpts: boolean;
  forceShare: boolean;
  progress: string | null;
  quiet: boolean;
}

async function parse(
  context: CommandContext,
  words: readonly string[],
): Promise<Request & { readonly name: string }> {
  const request: Request = {
    backing: null,
    backingFormat: null,
    format: null,
    cache: 'writeback',
    sourceCache: 'writeback',
    unsafe: false,
    compress: false,
    imageOpts: false,
    forceShare: false,
    progress: null,
    quiet: false,
  };
  const operands = await readOptions(context, REBASE, words, (name, value) => {
    switch (name) {
      case 'backingFormatNew':
        request.backingFormat = value;
        break;
      case 'backing':
      case 'backingFormat':
      case 'format':
      case 'cache':
      case 'sourceCache':
      case 'progress':
        request[name] = value;
        break;
      default:
        request[name] = true;
    }
  });
  const [name] = operands;
  if (name === undefined || operands.length !== 1) throw new UsageError('Expecting one image file name');
  if (!request.unsafe && request.backing === null)
    throw new UsageError('Must specify backing file (-b) or use unsafe mode (-u)');
  checkFormatGiven(request.imageOpts, request.format);
  return { ...request, name };
}

export async function rebase(context: CommandContext, words: readonly string[]): Promise<number> {
  const request = await parse(context, words);
  const { name, backing, backingFormat, unsafe } = request;
  const env = context.environment();
  const cache = targetCache(request.cache);
  const readCache = sourceCache(request.sourceCache);
  const progress = createProgress(context.output, progressMode(request.progress, request.quiet), 1);
  try {
    progress.add(0);
    const image = await openNamedImage(env, {
      name,
      format: request.format,
      imageOpts: request.imageOpts,
      cache,
      write: true,
      noBacking: unsafe,
    });
    if (backingFormat !== null && !Object.hasOwn(env.layer.drivers, backingFormat))
      throw new BlockError(`Invalid format name: '${backingFormat}'`);
    const { node } = image;
    const hasNew = backing !== null && backing !== '';
    // Without -b the original tells of a name that is none.
    const shown = backing ?? '(null)';
    const changeable = (): void => checkChangeable(node, shown, hasNew && backingFormat === null);
    if (unsafe) changeable();
    else {
      const next = hasNew ? await openNew(context, request, backing, readCache) : null;
      changeable();
      const prefix = hasNew ? findBackingImage(node, backing) : null;
      await copyDifferences(image, prefix, next?.backend ?? null, request.compress, progress);
      await next?.close();
    }
    await changeBacking(node, hasNew ? backing : null, backingFormat);
    await image.close();
    progress.set(100);
  } finally {
    progress.end();
  }
  return 0;
}

/** What cannot succeed in the end is refused before anything is copied. */
function checkChangeable(node: BlockNode, backing: string, formatMissing: boolean): void {
  const text = `Could not change the backing file to '${backing}': `;
  if (formatMissing) throw new BlockError(`${text}backing format must be specified`, { errno: E.EINVAL });
  if (node.driver.changeBackingFile === undefined)
    throw new BlockError(`${text}Operation not supported`, { errno: E.ENOTSUP });
}

async function openNew(
  { environment }: CommandContext,
  { name: overlay, backingFormat: format, forceShare }: Request & { readonly name: string },
  backing: string,
  cache: ReturnType<typeof sourceCache>,
): Promise<ToolImage> {
  const name = relativeName(overlay, backing);
  try {
    return await openToolImage(environment(), { name, format, imageOpts: false, forceShare, cache });
  } catch (error) {
    throw prefixed(`Could not open new backing file '${backing}': `, error);
  }
}

async function changeBacking(node: BlockNode, backing: string | null, format: string | null): Promise<void> {
  try {
    await writeBackingName(node, backing === null ? null : { filename: backing, format });
  } catch (error) {
    throw prefixed(`Could not change the backing file to '${backing ?? ''}': `, error);
  }
}

/**
 * Copies into the image what its old and its new backing image show differently. `prefix`: the new backing image where it
 * is one of the old chain's; what the images above it do not hold is the same then.
 */
async function copyDifferences(
  image: ToolImage,
  prefix: BlockNode | null,
  next: BlockBackend | null,
  compress: boolean,
  progress: Progress,
): Promise<void> {
  const { node, backend } = image;
  const old = cowChild(skipFilters(node))?.node ?? null;
  const total = node.totalBytes;
  progress.begin('rebase', total);
  // What an image without a backing file does not hold reads as zeroes, and is to go on doing so.
  const mayChange = old !== null || next !== null;
  const { graphLock } = node.layer;
  const clusterBytes = (await infoOrNull(node))?.clusterSizeBytes ?? 65536;
  const pieceBytes = Math.max(IN_TURN_BYTES, clusterBytes);
  const turns = createTurns();
  const [mine, theirs] = [allocateIoMemory(pieceBytes), allocateIoMemory(pieceBytes)];
  const copy = async (at: number, bytes: number): Promise<void> => {
    await read(backend, at, bytes, mine);
    const there = next === null ? 0 : Math.max(0, Math.min(bytes, next.node.totalBytes - at));
    if (there > 0) await read(next!, at, there, theirs);
    if (there > 0) theirs.buf.fill(0, there, bytes);
    for (let from = 0; from < bytes; ) {
      const run = differingRun(mine.buf, there > 0 ? theirs.buf : null, from, bytes, clusterBytes);
      if (run === null) break;
      await write(image, mine, at, run.from, run.to, compress ? clusterBytes : null);
      from = run.to;
    }
    await turns.next();
  };
  for (let at = 0; at < total; ) {
    const limit = Math.min(total - at, STATUS_BYTES);
    const own = await graphLock.withRead((guard) => blockStatusAbove(node, guard, old, false, at, limit));
    const isOwn = (own.flags & Status.allocated) !== 0 || !mayChange;
    const below = isOwn
      ? { bytes: own.bytes, copy: false }
      : wholeClusters(await statusBelow(node, old, prefix, at, own.bytes), at, own.bytes, clusterBytes);
    for (const end = at + below.bytes; at < end; ) {
      let bytes = end - at;
      if (below.copy) {
        // Whole clusters at once: part of one would be filled up from the old backing image first.
        bytes = Math.min(bytes, pieceBytes);
        if (bytes > clusterBytes && at + bytes < total) bytes -= (at + bytes) % clusterBytes;
        await copy(at, bytes);
      }
      at += bytes;
      progress.add((bytes / total) * 100);
    }
  }
}

/** Whether the range may show something else with the new backing image. */
async function statusBelow(
  node: BlockNode,
  old: BlockNode | null,
  prefix: BlockNode | null,
  offset: number,
  bytes: number,
): Promise<{ readonly bytes: number; readonly copy: boolean }> {
  if (old === null || prefix === null) return { bytes, copy: true };
  const found = await node.layer.graphLock.withRead((guard) =>
    blockStatusAbove(old, guard, prefix, false, offset, bytes),
  );
  // Past the end of the old backing image the new one would show.
  if (found.bytes === 0) return { bytes, copy: true };
  return { bytes: found.bytes, copy: (found.flags & Status.allocated) !== 0 };
}

/** An image below may have smaller clusters: what ends within one of this image's ends before it, or takes all of it. */
function wholeClusters(
  below: { readonly bytes: number; readonly copy: boolean },
  offset: number,
  limit: number,
  clusterBytes: number,
): { readonly bytes: number; readonly copy: boolean } {
  if (below.bytes >= limit) return below;
  const bytes = below.bytes - ((offset + below.bytes) % clusterBytes);
  if (bytes > 0) return { bytes, copy: below.copy };
  return { bytes: Math.min(limit, clusterBytes - (offset % clusterBytes)), copy: true };
}

/** Reads into the start of the memory, within this turn where nothing has to wait. */
async function read(backend: BlockBackend, offset: number, bytes: number, into: IoMemory): Promise<void> {
  const vector = vectorOf(into, 0, bytes);
  if (!backend.tryPreadv(offset, bytes, vector)) await backend.preadv(offset, bytes, vector, 0);
}

/** The next run of whole clusters, from `from` on, that differ, or are not zeroes; null: there is none. */
function differingRun(
  one: Buffer,
  two: Buffer | null,
  from: number,
  end: number,
  clusterBytes: number,
): { readonly from: number; readonly to: number } | null {
  const differs = (at: number): boolean => {
    const to = Math.min(at + clusterBytes, end);
    return two === null ? !isZero(one.subarray(at, to)) : one.compare(two, at, to, at, to) !== 0;
  };
  let start = from;
  while (start < end && !differs(start)) start += clusterBytes;
  if (start >= end) return null;
  let to = start + clusterBytes;
  while (to < end && differs(to)) to += clusterBytes;
  return { from: start, to: Math.min(to, end) };
}

/**
 * Writes [from, to) of the buffer, which has been read from `at`, into the image. `compressBytes`: the cluster size, where
 * whole clusters are written compressed; a part of one, the rest of which the image has, cannot be.
 */
async function write(
  { backend, node, writeFlags }: ToolImage,
  memory: IoMemory,
  at: number,
  from: number,
  to: number,
  compressBytes: number | null,
): Promise<void> {
  const [start, end] = [at + from, at + to];
  if (isZero(memory.buf.subarray(from, to))) {
    await backend.pwriteZeroes(start, end - start, writeFlags | Req.mayUnmap);
    // Where nothing shows through yet, a format without clusters of zeroes has nothing to do for it.
    if (await isHeld(node, start, end - start)) return;
  }
  const packed =
    compressBytes === null ? { start: end, end } : clustersIn(start, end, node.totalBytes, compressBytes);
  const part = (first: number, last: number): IoVector => vectorOf(memory, first - at, last - first);
  const plain = async (first: number, last: number): Promise<void> => {
    if (last === first) return;
    const vector = part(first, last);
    if (writeFlags === 0 && backend.tryPwritev(first, last - first, vector)) return;
    await backend.pwritev(first, last - first, vector, writeFlags);
  };
  await plain(start, packed.start);
  if (packed.end > packed.start)
    await backend.pwritevCompressed(packed.start, packed.end - packed.start, part(packed.start, packed.end));
  await plain(packed.end, end);
}

/** Whether the image itself holds all of the range. */
async function isHeld(node: BlockNode, offset: number, bytes: number): Promise<boolean> {
  const below = cowChild(skipFilters(node))?.node ?? null;
  for (let done = 0; done < bytes; ) {
    const status = await node.layer.graphLock.withRead((guard) =>
      blockStatusAbove(node, guard, below, false, offset + done, bytes - done),
    );
    if (status.bytes === 0 || (status.flags & Status.allocated) === 0) return false;
    done += status.bytes;
  }
  return true;
}

/** The whole clusters in [start, end); the image's last one may be shorter. */
function clustersIn(
  start: number,
  end: number,
  totalBytes: number,
  clusterBytes: number,
): { readonly start: number; readonly end: number } {
  const first = Math.min(end, Math.ceil(start / clusterBytes) * clusterBytes);
  const last = end === totalBytes ? end : end - (end % clusterBytes);
  return { start: first, end: Math.max(first, last) };
}
