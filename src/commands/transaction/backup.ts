/** Actions of schema/backup.json: jobs that copy a node as it is now. The commands are transactions of one of them. */

import type { BackupCommon, DriveBackup } from '../../../schema/generated/types.ts';
import { checkUsable, findBitmap } from '../../block/bitmaps/dirty-bitmap.ts';
import { cowChild, skipFilters } from '../../block/graph/chain.ts';
import { findNode } from '../../block/graph/find-node.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { checkOperation } from '../../block/graph/op-blockers.ts';
import type { BlockLayer } from '../../block/layer.ts';
import { nodeFilename } from '../../block/open/filename.ts';
import { openImage } from '../../block/open/open.ts';
import { BlockError } from '../../errors/error.ts';
import { type BackupOptions, prepareBackup } from '../../jobs/backup.ts';
import type { JobTransaction } from '../../jobs/job-common.ts';
import { makeImage } from '../new-image.ts';
import type { ActionContext, ActionHandlers, PreparedAction } from './transaction.ts';

const DEFAULT_WORKERS = 64;
const MAX_INT = 2 ** 31 - 1;

/** The bitmap of a backup, with what becomes of it; null: none. Throws when it does not go with the rest. */
function bitmapOf(source: BlockNode, args: BackupCommon): BackupOptions['bitmap'] {
  const { sync, bitmap: name } = args;
  let { 'bitmap-mode': mode } = args;
  if (name === undefined && (sync === 'bitmap' || sync === 'incremental'))
    throw new BlockError(`must provide a valid bitmap name for '${sync}' sync mode`);
  if (sync === 'incremental') {
    if (mode !== undefined && mode !== 'on-success')
      throw new BlockError("Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
    mode = 'on-success';
  }
  if (name === undefined) {
    if (mode !== undefined) throw new BlockError('Cannot specify bitmap sync mode without a bitmap');
    return null;
  }
  const bitmap = findBitmap(source, name);
  if (bitmap === null) throw new BlockError(`Bitmap '${name}' could not be found`);
  if (mode === undefined) throw new BlockError('Bitmap sync mode must be given when providing a bitmap');
  // Whether it can be changed is asked later, by the job: see optionsOf.
  checkUsable(bitmap, { readOnly: true });
  if (sync === 'none') throw new BlockError("sync mode 'none' does not produce meaningful bitmap outputs");
  if (mode === 'never' && sync !== 'bitmap') {
    throw new BlockError(
      `Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '${sync}'`,
    );
  }
  return { bitmap, mode };
}

/** The options of a backup of `source`, which is drained, to `target`, after all checks. */
function optionsOf(
  source: BlockNode,
  target: BlockNode,
  args: BackupCommon,
  transaction: JobTransaction | undefined,
): BackupOptions {
  const bitmap = bitmapOf(source, args);
  if (source === target) throw new BlockError('Source and target cannot be the same');
  if (args.compress === true && target.driver.pwritevCompressed === undefined)
    throw new BlockError('Compression is not supported for this drive ');
  checkOperation(source, 'backup-source');
  checkOperation(target, 'backup-target');
  const { 'x-perf': perf = {} } = args;
  const workers = perf['max-workers'] ?? DEFAULT_WORKERS;
  if (workers < 1 || workers > MAX_INT) throw new BlockError(`max-workers must be between 1 and ${MAX_INT}`);
  const maxChunkBytes = perf['max-chunk'] ?? 0;
  if (maxChunkBytes < 0) throw new BlockError('max-chunk must be zero (which means no limit) or positive');
  if (bitmap !== null && bitmap.mode !== 'never') checkUsable(bitmap.bitmap);
  if (source.totalBytes !== target.totalBytes)
    throw new BlockError('Source and target image have different sizes');
  return {
    id: args['job-id'] ?? '',
    source,
    target,
    sync: args.sync,
    speed: args.speed ?? 0,
    bitmap,
    compress: args.compress ?? false,
    discardSource: args['discard-source'] ?? false,
    onSourceError: args['on-source-error'] ?? 'report',
    onTargetError: args['on-target-error'] ?? 'report',
    autoFinalize: args['auto-finalize'] ?? true,
    autoDismiss: args['auto-dismiss'] ?? true,
    filterName: args['filter-node-name'] ?? null,
    useCopyRange: perf['use-copy-range'] ?? true,
    maxWorkers: workers,
    maxChunkBytes,
    minClusterBytes: perf['min-cluster-size'] ?? 0,
    onCbwError: args['on-cbw-error'] ?? 'break-guest-write',
    ...(transaction !== undefined && { transaction }),
  };
}

/** Makes the job; what may become of it then is the transaction's. */
async function prepare(
  { jobs, jobTransaction }: ActionContext,
  source: BlockNode,
  target: BlockNode,
  args: BackupCommon,
): Promise<PreparedAction> {
  const options = optionsOf(source, target, args, jobTransaction ?? undefined);
  const backup = await prepareBackup(jobs, options);
  return { commit: backup.start, abort: backup.discard, settle: backup.answered };
}

/** Opens the target of drive-backup, after making it when it is to be made. */
function openTarget(layer: BlockLayer, source: BlockNode, args: DriveBackup): Promise<BlockNode> {
  const { target: filename, mode = 'absolute-paths', sync } = args;
  const format = args.format ?? (mode === 'existing' ? null : source.driver.name);
  const backing =
    sync === 'top' ? (cowChild(skipFilters(source))?.node ?? null) : sync === 'none' ? source : null;
  const settings = {
    discard: 'unmap',
    'detect-zeroes': 'unmap',
    cache: { direct: source.settings.cache.direct, 'no-flush': source.settings.cache.noFlush },
    // What is not copied yet is seen in the source.
    ...(sync === 'none' && { backing: source.name }),
  };
  if (mode === 'existing') return openImage(layer, filename, format, settings);
  return makeImage(layer, {
    filename,
    format: format!,
    sizeBytes: source.totalBytes,
    backing:
      backing === null ? null : { filename: nodeFilename(backing), format: skipFilters(backing).driver.name },
  }).then(() => openImage(layer, filename, format, settings));
}

export const backupActions: ActionHandlers<'blockdev-backup' | 'drive-backup'> = {
  'blockdev-backup': {
    maybeGrouped: true,
    prepare(context, args) {
      const source = findNode(context.layer, args.device);
      return prepare(context, source, findNode(context.layer, args.target), args);
    },
  },
  'drive-backup': {
    maybeGrouped: true,
    async prepare(context, args) {
      const { layer } = context;
      const source = findNode(layer, args.device);
      const target = await openTarget(layer, source, args);
      layer.hold(target);
      try {
        const action = await prepare(context, source, target, args);
        return { ...action, clean: () => layer.release(target) };
      } catch (error) {
        await layer.release(target);
        throw error;
      }
    },
  },
};
