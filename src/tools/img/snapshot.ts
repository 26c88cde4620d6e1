/** `snapshot`: lists, makes, applies and deletes the internal snapshots of an image. */

import type { InternalSnapshots } from '../../block/contract/image.ts';
import { type SnapshotKeeper, snapshotKeeper } from '../../block/graph/chain.ts';
import { drained } from '../../block/graph/drain.ts';
import { imageInfo } from '../../block/query/query.ts';
import { E, strerror } from '../../errors/errno.ts';
import { BlockError, errnoOf, prefixed } from '../../errors/error.ts';
import { openNamedImage, type ToolImage } from '../common/environment.ts';
import { type CommandContext, readOptions, UsageError } from './common/command.ts';
import { snapshotLines } from './common/image-text.ts';
import { SNAPSHOT } from './tables/keeping.ts';

type Action = 'list' | 'apply' | 'create' | 'delete';

export async function snapshot(context: CommandContext, words: readonly string[]): Promise<number> {
  let action: Action | null = null;
  let snapshotName = '';
  let imageOpts = false;
  let forceShare = false;
  let format: string | null = null;
  const operands = await readOptions(context, SNAPSHOT, words, (name, value) => {
    if (name === 'imageOpts') imageOpts = true;
    else if (name === 'forceShare') forceShare = true;
    else if (name === 'format') format = value;
    else if (name !== 'quiet') {
      if (action !== null) throw new UsageError("Cannot mix '-l', '-a', '-c', '-d'");
      action = name;
      snapshotName = value;
    }
  });
  const [name] = operands;
  if (name === undefined || operands.length !== 1) throw new UsageError('Expecting one image file name');
  const image = await openNamedImage(context.environment(), {
    name,
    imageOpts,
    forceShare,
    format,
    write: action !== 'list',
    unmap: true,
  });
  // Without an option there is nothing to do.
  if (action !== null) await ACTIONS[action as Action](context, image, snapshotName);
  await image.close();
  return 0;
}

type ActionFunction = (context: CommandContext, image: ToolImage, name: string) => Promise<void>;

const ACTIONS: Readonly<Record<Action, ActionFunction>> = {
  list: async ({ output }, { node }) => {
    const { snapshots } = await imageInfo(node);
    if (snapshots !== undefined) output.print(`Snapshot list:\n${snapshotLines(snapshots).join('\n')}\n`);
  },

  create: async (_context, { node }, name) => {
    const now = Date.now();
    try {
      await change(snapshotKeeper(node), ({ keeper, snapshots }, guard) =>
        snapshots.create(keeper, guard, {
          name,
          vmStateBytes: 0,
          dateSeconds: Math.floor(now / 1000),
          dateNanoseconds: (now % 1000) * 1_000_000,
          vmClockNanoseconds: 0n,
          icount: 0n,
        }),
      );
    } catch (error) {
      const errno = errnoOf(error);
      throw new BlockError(`Could not create snapshot '${name}': ${-errno} (${strerror(errno)})`, { errno });
    }
  },

  apply: async ({ output }, { node }, name) => {
    const kept = snapshotKeeper(node);
    const prefix = `Could not apply snapshot '${name}': `;
    if (kept === null) throw new BlockError(`${prefix}Block driver does not support snapshots`);
    if (node.dirtyBitmaps.all.size > 0) throw new BlockError(`${prefix}Device has active dirty bitmaps`);
    try {
      await change(kept, ({ keeper, snapshots }, guard) => snapshots.apply(keeper, guard, name));
    } catch (error) {
      // The original reports what is wrong with the table apart.
      if (error instanceof BlockError && error.message.startsWith('Snapshot L1 table')) output.error(error);
      const errno = errnoOf(error);
      throw new BlockError(`${prefix}Failed to load snapshot: ${strerror(errno)}`, { errno });
    }
  },

  delete: async (_context, { node }, name) => {
    const kept = snapshotKeeper(node);
    const prefix = `Could not delete snapshot '${name}': `;
    const found = kept?.snapshots.list(kept.keeper).find((one) => one.name === name);
    if (found === undefined) throw new BlockError(`${prefix}snapshot not found`);
    try {
      await change(kept, ({ keeper, snapshots }, guard) =>
        snapshots.delete(keeper, guard, found.id, found.name),
      );
    } catch (error) {
      throw prefixed(prefix, error);
    }
  },
};

type Guard = Parameters<InternalSnapshots['apply']>[1];

/** Runs a change while nothing else goes on in the node that keeps the snapshots. */
function change(
  kept: SnapshotKeeper | null,
  run: (kept: SnapshotKeeper, guard: Guard) => Promise<void>,
): Promise<void> {
  if (kept === null) return Promise.reject(new BlockError(strerror(E.ENOTSUP), { errno: E.ENOTSUP }));
  const { keeper } = kept;
  return drained(keeper, () => keeper.layer.graphLock.withRead((guard) => run(kept, guard)));
}
