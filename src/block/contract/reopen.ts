/**
 * What a driver does when its node is reopened: gets other options without being closed. Part of the contract in
 * driver.ts; who calls it and when is in reopen.ts.
 *
 * All nodes of a reopening are drained. Every one is prepared; when one of them refuses, all are aborted, otherwise
 * the graph changes, permissions are taken, and all are committed.
 */

import type { BlockNode, NodeSettings } from '../graph/node.ts';
import type { DriverOptions } from './image.ts';

/**
 * What becomes of an option that is left out: it goes back to its default, or the reopening is refused. `never-same`:
 * refused too, and whatever is given counts as a change and is refused as well.
 */
export type LeftOut = 'resets' | 'refused' | 'never-same';

export interface ReopenContext<Options = DriverOptions> {
  /** The driver's own options as they will be, without those of children. */
  readonly options: Options;
  /** Settings as they will be: read-only, cache modes and the like. */
  readonly settings: NodeSettings;
  /** The child of that name as it will be; null when there will be none. */
  child(name: string): BlockNode | null;
}

export interface ReopenCallbacks<S> {
  /** Options that can change, by their first name. Whatever else is given must be as it is. */
  readonly mutableOptions?: Readonly<Record<string, LeftOut>>;
  /**
   * Checks and gets ready, changing nothing that shows; throws to refuse. The result is handed to commit or abort. A
   * driver without it cannot be reopened, nor can nodes that define such a node inline.
   */
  reopenPrepare?(node: BlockNode<S>, context: ReopenContext): Promise<unknown>;
  /** Makes it so, under the graph write lock, when permissions and settings are the new ones. Must not fail. */
  reopenCommit?(node: BlockNode<S>, prepared: unknown): void;
  /** Undoes what was prepared; must not fail. */
  reopenAbort?(node: BlockNode<S>, prepared: unknown): Promise<void> | void;
  /** Runs at the end of a successful reopening, still drained: what has to be written now. Children come first. */
  afterReopen?(node: BlockNode<S>, prepared: unknown): Promise<void>;
}
