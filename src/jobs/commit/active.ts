/**
 * The commit job for the active layer: what a node and the images below it down to `base` hold is copied into `base`, and
 * then `base` takes the node's place.
 *
 * Users write to the node all the while, so this is a mirror (mirror/) whose target is below its source.
 */

import type { BlockdevOnError } from '../../../schema/generated/types.ts';
import { Perm } from '../../block/contract/request.ts';
import { chainEdges } from '../../block/graph/chain.ts';
import { freezeEdges } from '../../block/graph/change.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { wrapped } from '../../block/io/callbacks.ts';
import { checkNodeName } from '../../block/open/open.ts';
import type { Job, JobTable } from '../job-common.ts';
import { startMirror } from '../mirror/job.ts';
import { makeWritable } from '../writable.ts';

export interface ActiveCommitOptions {
  readonly id: string;
  /** The active layer. */
  readonly top: BlockNode;
  /** The image that takes the data, below `top`. */
  readonly base: BlockNode;
  /** Bytes a second; 0: no limit. */
  readonly speed: number;
  readonly onError: BlockdevOnError;
  /** Null: it gets a name. */
  readonly filterName: string | null;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
}

/** Starts the job and waits until the command may be answered. */
export async function startActiveCommit(table: JobTable, options: ActiveCommitOptions): Promise<Job> {
  const { top, base, onError, filterName } = options;
  if (filterName !== null) checkNodeName(top.layer, filterName);
  const readOnlyAgain = await makeWritable(base);
  // What is found on the way down is copied once: the chain must stay as it is.
  const unfreeze = freezeEdges(chainEdges(top, base));
  let job: Job;
  try {
    const isShorter = base.totalBytes < top.totalBytes;
    job = await startMirror(table, {
      ...options,
      type: 'commit',
      source: top,
      target: base,
      round: { base, zeroTarget: false },
      replaces: null,
      granularityBytes: 0,
      bufferBytes: 0,
      unmap: true,
      copyMode: 'background',
      onSourceError: onError,
      onTargetError: onError,
      // Users see the base through the chain. Nobody relies on the images in between by themselves.
      targetUse: {
        perm: Perm.write | (isShorter ? Perm.resize : 0),
        shared: Perm.consistentRead | Perm.writeUnchanged | Perm.write,
      },
      between: chainEdges(top, base)
        .map((edge) => edge.node)
        .filter((node) => node !== base),
      begin: async () => {
        if (base.totalBytes < top.totalBytes)
          await wrapped.truncate(base, top.totalBytes, false, 'off', false);
      },
      // A base that has taken its place is what users write to.
      end: async (isPivoted) => {
        unfreeze();
        if (!isPivoted) await readOnlyAgain?.();
      },
    });
  } catch (error) {
    unfreeze();
    await readOnlyAgain?.();
    throw error;
  }
  await job.whenDetached;
  return job;
}
