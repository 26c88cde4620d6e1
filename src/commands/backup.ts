/** Commands of schema/backup.json: jobs that copy a node as it is now. */

import type { BackupCommon, BlockdevBackup } from '../../schema/generated/types.ts';
import { checkUsable, findBitmap } from '../block/dirty-bitmap.ts';
import { drainedBegin } from '../block/drain.ts';
import type { BlockLayer } from '../block/layer.ts';
import type { BlockNode } from '../block/node.ts';
import { checkOperation } from '../block/op-blockers.ts';
import { BlockError } from '../errors/error.ts';
import { type BackupOptions, type PreparedBackup, prepareBackup } from '../jobs/backup.ts';
import type { JobTransaction } from '../jobs/job-common.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

const DEFAULT_WORKERS = 64;
const MAX_INT = 2 ** 31 - 1;

export function findBackupNode(layer: BlockLayer, name: string): BlockNode {
  const node = layer.findNode(name);
  if (node === null) throw new BlockError(`Cannot find device='${name}' nor node-name='${name}'`);
  return node;
}

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
  checkUsable(bitmap, { readOnly: mode === 'never' });
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
    onSourceError: args['on-source-error'] ?? 'report',
    onTargetError: args['on-target-error'] ?? 'report',
    autoFinalize: args['auto-finalize'] ?? true,
    autoDismiss: args['auto-dismiss'] ?? true,
    filterName: args['filter-node-name'] ?? null,
    useCopyRange: perf['use-copy-range'] ?? true,
    maxWorkers: workers,
    maxChunkBytes,
    ...(transaction !== undefined && { transaction }),
  };
}

/** A backup that is prepared; `end` ends the drained section of its source, whatever has become of it. */
export interface BackupAction extends PreparedBackup {
  end(): void;
}

/** blockdev-backup up to the start of the job. For the command, and as an action of a transaction. */
export async function prepareBlockdevBackup(
  { layer, jobs }: CommandContext,
  args: BlockdevBackup,
  transaction?: JobTransaction,
): Promise<BackupAction> {
  const source = findBackupNode(layer, args.device);
  const target = findBackupNode(layer, args.target);
  const section = await drainedBegin(source);
  try {
    const options = optionsOf(source, target, args, transaction);
    const prepared = await prepareBackup(jobs, options);
    return { ...prepared, end: section.end };
  } catch (error) {
    section.end();
    throw error;
  }
}

/** Starts a backup by itself. */
async function startAlone(action: BackupAction): Promise<void> {
  action.start();
  action.end();
  await action.answered();
}

export const backupCommands = {
  'blockdev-backup': async (context, args) => {
    await startAlone(await prepareBlockdevBackup(context, args));
    return {};
  },
  'drive-backup': () => {
    throw new BlockError('drive-backup is not there yet');
  },
} satisfies Pick<Handlers<CommandContext>, 'blockdev-backup' | 'drive-backup'>;
