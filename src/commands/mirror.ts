/** Commands of schema/mirror.json: mirror jobs to a node, or to a file that is made or opened. */

import type { Commands } from '../../schema/generated/types.ts';
import { cowChild, showsContentOf, skipFilters } from '../block/graph/chain.ts';
import { checkRootNode, findNode } from '../block/graph/find-node.ts';
import type { BlockNode } from '../block/graph/node.ts';
import { checkOperation } from '../block/graph/op-blockers.ts';
import type { BlockLayer } from '../block/layer.ts';
import { nodeFilename } from '../block/open/filename.ts';
import { absoluteBackingName } from '../block/open/image-name.ts';
import { checkNodeName, openImage } from '../block/open/open.ts';
import { BlockError } from '../errors/error.ts';
import { findBlockJob } from '../jobs/block-job.ts';
import { checkVerb, withJobLock } from '../jobs/job-common.ts';
import { type MirrorOptions, startMirror, type TargetBacking } from '../jobs/mirror/job.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';
import { makeImage } from './new-image.ts';

type BlockdevMirror = Commands['blockdev-mirror']['args'];
type DriveMirror = Commands['drive-mirror']['args'];

const GRANULARITY_MIN_BYTES = 512;
const GRANULARITY_MAX_BYTES = 64 * 1024 * 1024;

/** The source: other nodes must not use it, nor a job. */
function findSource(layer: BlockLayer, name: string): BlockNode {
  const node = findNode(layer, name);
  checkRootNode(node);
  checkOperation(node, 'mirror-source');
  return node;
}

/** The node that is replaced in the end; null: the source itself. */
function findReplaced(layer: BlockLayer, source: BlockNode, name: string | undefined): BlockNode | null {
  if (name === undefined) return null;
  const node = layer.findNode(name);
  if (node === null) throw new BlockError(`Failed to find node with node-name='${name}'`);
  checkOperation(node, 'replace');
  if (!showsContentOf(source, node)) {
    throw new BlockError(
      `Cannot replace '${name}' by a node mirrored from '${source.name}', because it cannot be guaranteed that doing ` +
        'so would not lead to an abrupt change of visible data',
    );
  }
  if (node.totalBytes !== source.totalBytes)
    throw new BlockError('cannot replace image with a mirror image of different size');
  return node;
}

function checkGranularity(bytes: number): void {
  if (bytes === 0) return;
  if (bytes < GRANULARITY_MIN_BYTES || bytes > GRANULARITY_MAX_BYTES)
    throw new BlockError("Parameter 'granularity' expects a value in range [512B, 64MB]");
  if (!Number.isInteger(Math.log2(bytes)))
    throw new BlockError("Parameter 'granularity' expects a power of 2");
}

/** What both commands have in common: their checks, and the job. */
async function mirror(
  { layer, jobs }: CommandContext,
  given: BlockdevMirror | DriveMirror,
  source: BlockNode,
  target: BlockNode,
  own: Pick<MirrorOptions, 'unmap' | 'filterName' | 'backing'> & { readonly zeroTarget: boolean },
): Promise<void> {
  const { granularity = 0, 'buf-size': bufferBytes = 0, sync } = given;
  checkGranularity(granularity);
  checkOperation(target, 'mirror-target');
  const base = cowChild(skipFilters(source))?.node ?? null;
  const isTop = sync === 'top' && base !== null;
  const replaces = findReplaced(layer, source, given.replaces);
  if (sync === 'incremental' || sync === 'bitmap') throw new BlockError(`Sync mode '${sync}' not supported`);
  if (source === target) throw new BlockError("Can't mirror node into itself");
  if (bufferBytes < 0) throw new BlockError("Invalid parameter 'buf-size'");
  if (own.filterName !== null) checkNodeName(layer, own.filterName);
  const job = await startMirror(jobs, {
    ...own,
    id: given['job-id'] ?? '',
    source,
    target,
    replaces,
    round:
      sync === 'none'
        ? null
        : {
            base: isTop ? base : null,
            zeroTarget: own.zeroTarget && !isTop,
            targetIsZero: sync === 'full' && 'target-is-zero' in given && given['target-is-zero'] === true,
          },
    granularityBytes: granularity,
    bufferBytes,
    speed: given.speed ?? 0,
    copyMode: given['copy-mode'] ?? 'background',
    onSourceError: given['on-source-error'] ?? 'report',
    onTargetError: given['on-target-error'] ?? 'report',
    autoFinalize: given['auto-finalize'] ?? true,
    autoDismiss: given['auto-dismiss'] ?? true,
  });
  await job.whenDetached;
}

/** Opens the target of drive-mirror, after making it when it is to be made. The caller holds it until it is in use. */
async function openTarget(layer: BlockLayer, given: DriveMirror, source: BlockNode): Promise<BlockNode> {
  const { target: filename, mode = 'absolute-paths', sync } = given;
  const image = skipFilters(source);
  const format = given.format ?? (mode === 'existing' ? null : source.driver.name);
  if (given.replaces !== undefined && given['node-name'] === undefined)
    throw new BlockError('a node-name must be provided when replacing a named node of the graph');
  if (mode === 'absolute-paths') {
    const backing = sync === 'top' ? (cowChild(image)?.node ?? null) : sync === 'none' ? source : null;
    await makeImage(layer, {
      filename,
      format: format!,
      sizeBytes: source.totalBytes,
      backing:
        backing === null
          ? null
          : { filename: nodeFilename(backing), format: skipFilters(backing).driver.name },
    });
  }
  const known = format === null ? null : layer.drivers[format];
  const hasBacking = known?.supportsBacking === true && (sync !== 'full' || mode === 'existing');
  const { cache } = source.settings;
  return openImage(layer, filename, format, {
    ...(given['node-name'] !== undefined && { 'node-name': given['node-name'] }),
    ...(hasBacking && { backing: null }),
    ...((cache.direct || cache.noFlush) && { cache: { direct: cache.direct, 'no-flush': cache.noFlush } }),
    ...(given.unmap !== false && { discard: 'unmap' }),
  });
}

/** What tells, at the last moment, what is to be below the target of drive-mirror: other jobs may change the chain. */
async function targetBacking(
  layer: BlockLayer,
  { mode, sync }: DriveMirror,
  source: BlockNode,
  target: BlockNode,
): Promise<TargetBacking> {
  const image = skipFilters(target);
  const nothing: TargetBacking = { find: () => null, isNamed: true };
  if (image.driver.supportsBacking !== true) return nothing;
  if (mode === 'existing') {
    const named = image.driver.backingName?.(image) ?? null;
    if (named === null) return nothing;
    const name = absoluteBackingName(image, named.filename);
    const opened = await openImage(layer, name, named.format, { 'read-only': true });
    return { find: () => opened, isNamed: true };
  }
  if (sync === 'none') return { find: () => source, isNamed: true };
  if (sync !== 'top') return nothing;
  return { find: () => cowChild(skipFilters(source))?.node ?? null, isNamed: false };
}

export const mirrorCommands = {
  // Not in the original's 7.2; the errors are those of its later releases.
  'block-job-change': async ({ jobs }, options) => {
    const { job } = withJobLock(jobs, (lock) => {
      const found = findBlockJob(jobs, options.id, lock);
      checkVerb(found.job, 'change', lock);
      return found;
    });
    if (job.driver.type !== options.type || job.driver.change === undefined)
      throw new BlockError('Job type does not support change');
    await job.driver.change(job, options);
    return {};
  },
  'blockdev-mirror': async (context, given) => {
    const source = findSource(context.layer, given.device);
    const target = findNode(context.layer, given.target);
    await mirror(context, given, source, target, {
      unmap: true,
      filterName: given['filter-node-name'] ?? null,
      zeroTarget: given.sync === 'full' && given['target-is-zero'] !== true,
    });
    return {};
  },
  'drive-mirror': async (context, given) => {
    const { layer } = context;
    const source = findSource(layer, given.device);
    const target = await openTarget(layer, given, source);
    layer.hold(target);
    try {
      await mirror(context, given, source, target, {
        unmap: given.unmap ?? true,
        filterName: null,
        // A new file reads as zeroes.
        zeroTarget: given.sync === 'full' && given.mode === 'existing',
        backing: () => targetBacking(layer, given, source, target),
      });
    } finally {
      await layer.release(target);
    }
    return {};
  },
} satisfies Handlers<CommandContext, 'block-job-change' | 'blockdev-mirror' | 'drive-mirror'>;
