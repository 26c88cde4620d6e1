/** `snapshot`: lists, makes, applies and deletes the internal snapshots of an image. */

import type { InternalSnapshots } from '../../block/contract/image.ts';
import { snapshotKeeper } from '../../block/graph/chain.ts';
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

  create: async (_context, image, name) => {
    const { keeper: node, snapshots } = keeperOf(image);
    const now = Date.now();
    try {
      await change(snapshots, node, (guard) =>
        snapshots!.create(node, guard, {
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

  apply: async ({ output }, image, name) => {
    const { keeper: node, snapshots } = keeperOf(image);
    const prefix = `Could not apply snapshot '${name}': `;
    if (snapshots === undefined) throw new BlockError(`${prefix}Block driver does not support snapshots`);
    if (image.node.dirtyBitmaps.all.size > 0)
      throw new BlockError(`${prefix}Device has active dirty bitmaps`);
    try {
      await change(snapshots, node, (guard) => snapshots.apply(node, guard, name));
    } catch (error) {
      // The original reports what is wrong with the table apart.
      if (error instanceof BlockError && error.message.startsWith('Snapshot L1 table')) output.error(error);
      const errno = errnoOf(error);
      throw new BlockError(`${prefix}Failed to load snapshot: ${strerror(errno)}`, { errno });
    }
  },

  delete: async (_context, image, name) => {
    const { keeper: node, snapshots } = keeperOf(image);
    const prefix = `Could not delete snapshot '${name}': `;
    const found = snapshots?.list(node).find((one) => one.name === name);
    if (snapshots === undefined || found === undefined) throw new BlockError(`${prefix}snapshot not found`);
    try {
      await change(snapshots, node, (guard) => snapshots.delete(node, guard, found.id, found.name));
    } catch (error) {
      throw prefixed(prefix, error);
    }
  },
};

/** The node that keeps the image's snapshots, where one does. */
function keeperOf({ node }: ToolImage): {
  readonly keeper: Node;
  readonly snapshots: InternalSnapshots | undefined;
} {
  const keeper = snapshotKeeper(node) ?? node;
  return { keeper, snapshots: keeper.driver.snapshots };
}

type Node = ToolImage['node'];
type Guard = Parameters<InternalSnapshots['apply']>[1];

/** Runs a change while nothing else goes on in the node. */
function change(
  snapshots: InternalSnapshots | undefined,
  node: Node,
  run: (guard: Guard) => Promise<void>,
): Promise<void> {
  if (snapshots === undefined)
    return Promise.reject(new BlockError(strerror(E.ENOTSUP), { errno: E.ENOTSUP }));
  return drained(node, () => node.layer.graphLock.withRead(run));
}
