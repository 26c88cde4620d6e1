/**
 * The `transaction` command: actions on several nodes at one moment, all or nothing.
 *
 * Each action has up to four steps: `prepare` does what may fail, `commit` and `abort` make it last or take it back, `clean`
 * gives up what was held. All nodes the actions name are drained from before the first prepare until after the
 * last clean, so no request sees half of it. What an action does is in the tables of the files it belongs to.
 * Not here: the end of jobs that belong together (src/jobs/job-run.ts).
 */

import type { TransactionAction, TransactionActionKind } from '../../../schema/generated/types.ts';
import { createTurns } from '../../aio/host/turns.ts';
import { drainedBeginAll } from '../../block/graph/drain.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { BlockError } from '../../errors/error.ts';
import { createTransaction, type JobTransaction } from '../../jobs/job-common.ts';
import type { Handlers } from '../../qmp/dispatch.ts';
import type { CommandContext } from '../context.ts';
import { backupActions } from './backup.ts';
import { bitmapActions } from './bitmaps.ts';
import { externalSnapshotActions } from './external-snapshot.ts';
import { internalSnapshotActions } from './internal-snapshot.ts';

export interface ActionContext extends CommandContext {
  /** The transaction of the jobs that actions start; null: each job has its own. */
  readonly jobTransaction: JobTransaction | null;
}

/** An action that is prepared. `commit` cannot fail. */
export interface PreparedAction {
  commit?(): void | Promise<void>;
  abort?(): void | Promise<void>;
  clean?(): void | Promise<void>;
  /** Awaited when the nodes go on, and before the command is answered. */
  settle?(): Promise<void>;
}

export interface ActionHandler<K extends TransactionActionKind> {
  /** Allowed with completion-mode=grouped: it starts a job, or none is left of it. */
  readonly maybeGrouped?: true;
  prepare(
    context: ActionContext,
    data: Extract<TransactionAction, { type: K }>['data'],
  ): PreparedAction | Promise<PreparedAction>;
}

export type ActionHandlers<K extends TransactionActionKind = TransactionActionKind> = {
  readonly [P in K]: ActionHandler<P>;
};

const handlers: ActionHandlers = {
  ...backupActions,
  ...bitmapActions,
  ...externalSnapshotActions,
  ...internalSnapshotActions,
  abort: {
    maybeGrouped: true,
    prepare() {
      throw new BlockError('Transaction aborted using Abort action');
    },
  },
};

/** Members of an action's arguments that may name nodes. */
const NAMING = ['node', 'node-name', 'device', 'overlay', 'target'];

function namedNodes({ layer }: CommandContext, actions: readonly TransactionAction[]): BlockNode[] {
  const nodes = new Set<BlockNode>();
  for (const { data } of actions) {
    for (const member of NAMING) {
      const name = (data as Readonly<Record<string, unknown>>)[member];
      const node = typeof name === 'string' ? layer.findNode(name) : null;
      if (node !== null) nodes.add(node);
    }
    // Bits that are merged are those of this moment, wherever they come from.
    for (const source of 'bitmaps' in data ? data.bitmaps : []) {
      const node = typeof source === 'string' ? null : layer.findNode(source.node);
      if (node !== null) nodes.add(node);
    }
  }
  return [...nodes];
}

function prepare(
  context: ActionContext,
  { type, data }: TransactionAction,
  isGrouped: boolean,
): PreparedAction | Promise<PreparedAction> {
  const handler = handlers[type];
  if (isGrouped && handler.maybeGrouped !== true) {
    throw new BlockError(`Action '${type}' does not support Transaction property completion-mode = grouped`);
  }
  // The schema has seen to it that the arguments are those of this type.
  return handler.prepare(context, data as never);
}

/** Takes every step, also when one before it has failed; then throws what the first has thrown that did. */
async function allOf(steps: readonly (() => void | Promise<void>)[]): Promise<void> {
  const errors: unknown[] = [];
  const turns = createTurns();
  for (const step of steps) {
    try {
      await turns.next();
      await step();
    } catch (error) {
      errors.push(error);
    }
  }
  if (errors.length > 0) throw errors[0];
}

/** Executes actions; throws what the first that could not be prepared has thrown, with nothing changed. */
export async function runTransaction(
  context: CommandContext,
  actions: readonly TransactionAction[],
  isGrouped = false,
): Promise<void> {
  const section = await drainedBeginAll(namedNodes(context, actions));
  const jobTransaction = isGrouped ? createTransaction() : null;
  const prepared: PreparedAction[] = [];
  const turns = createTurns();
  try {
    try {
      for (const action of actions) {
        await turns.next();
        prepared.push(await prepare({ ...context, jobTransaction }, action, isGrouped));
      }
    } catch (error) {
      await allOf(prepared.toReversed().map((action) => () => action.abort?.()));
      throw error;
    }
    await allOf(prepared.map((action) => () => action.commit?.()));
  } finally {
    try {
      await allOf(prepared.map((action) => () => action.clean?.()));
    } finally {
      section.end();
    }
  }
  await Promise.all(prepared.map((action) => action.settle?.()));
}

export const transactionCommands = {
  transaction: async (context, { actions, properties }) => {
    await runTransaction(context, actions, properties?.['completion-mode'] === 'grouped');
    return {};
  },
  'blockdev-backup': async (context, data) => {
    await runTransaction(context, [{ type: 'blockdev-backup', data }]);
    return {};
  },
  'drive-backup': async (context, data) => {
    await runTransaction(context, [{ type: 'drive-backup', data }]);
    return {};
  },
  'blockdev-snapshot': async (context, data) => {
    await runTransaction(context, [{ type: 'blockdev-snapshot', data }]);
    return {};
  },
  'blockdev-snapshot-sync': async (context, data) => {
    await runTransaction(context, [{ type: 'blockdev-snapshot-sync', data }]);
    return {};
  },
  'blockdev-snapshot-internal-sync': async (context, data) => {
    await runTransaction(context, [{ type: 'blockdev-snapshot-internal-sync', data }]);
    return {};
  },
} satisfies Pick<
  Handlers<CommandContext>,
  | 'transaction'
  | 'blockdev-backup'
  | 'drive-backup'
  | 'blockdev-snapshot'
  | 'blockdev-snapshot-sync'
  | 'blockdev-snapshot-internal-sync'
>;
