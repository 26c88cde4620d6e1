/**
 * The contract between the table of exports and a kind of export.
 *
 * A kind says which permissions it needs and how an export of it starts; what runs then answers to drained sections,
 * resizes and the end, and tells how many clients it has. Ids, checks common to all, statistics, limits and the order
 * of events are the table's (table.ts, export.ts). A new kind is a file or folder here and a line in types.ts.
 */

import type { BlockExportOptions } from '../../schema/generated/types.ts';
import type { BlockBackend } from '../block/backend.ts';
import type { BackendIo } from '../block/contract/backend-io.ts';
import type { PermissionPair } from '../block/contract/request.ts';
import type { BlockNode } from '../block/graph/node.ts';
import type { BlockLayer } from '../block/layer.ts';
import type { ClientLog } from '../nbd/server/server.ts';
import type { ObjectTree } from '../objects/tree.ts';

export type ExportTypeName = BlockExportOptions['type'];

/** The options of one kind of export. */
export type OptionsOf<T extends ExportTypeName> = Extract<BlockExportOptions, { type: T }>;

/** What every kind of export may use. */
export interface ExportEnvironment {
  readonly layer: BlockLayer;
  readonly objects: ObjectTree;
  /** Takes lines of the log about clients. */
  readonly log: ClientLog;
  /** Calls its argument once clients may be served: when the daemon has executed its command line. */
  readonly whenServing: (serve: () => void) => void;
  /** The command line is being executed: it may name descriptors which the daemon inherited. */
  readonly mayInheritFds: () => boolean;
}

/** What a starting export is given. */
export interface ExportHost {
  readonly id: string;
  readonly node: BlockNode;
  /** For requests of clients: counted, timed, and held back by the export's limits. */
  readonly io: BackendIo;
  /** For what is no request of a client: the length, and changing it. */
  readonly backend: BlockBackend;
  readonly writable: boolean;
  /** Every write is on stable storage before it is answered. */
  readonly writethrough: boolean;
  /** Whether the node is drained; later changes come through RunningExport.setPaused. */
  readonly paused: boolean;
}

/** An export at work, as the table sees it. */
export interface RunningExport {
  /** Clients being served. */
  readonly clientCount: number;
  /** Whether clients keep the export from being removed with mode `safe`. */
  readonly inUse: boolean;
  /** The node's drained section begins or ends: no new requests meanwhile. The backend would hold them back. */
  setPaused(paused: boolean): void;
  /** The node's length has changed. */
  resized(): void;
  /**
   * Takes no more clients and ends those there are; resolves when the last request has ended. Called once. `backend`
   * is closed afterwards.
   */
  stop(): Promise<void>;
}

export interface ExportType<T extends ExportTypeName = ExportTypeName> {
  /** Clients get errors for what an inactive node does not do, and go on afterwards. */
  readonly servesInactive?: boolean;
  /** What it takes of the node and lets others do. */
  permissions(options: OptionsOf<T>, writable: boolean): PermissionPair;
  /** Throws BlockError; then nothing is left behind. */
  start(options: OptionsOf<T>, host: ExportHost): RunningExport | Promise<RunningExport>;
}
