/**
 * All exports: ids, life cycles, and the checks and error texts of the commands, whose order is the original's.
 *
 * Not here: the parsing of commands (src/commands/block-export.ts), what all exports have in common (export.ts), what
 * is particular to a kind (types.ts and the folders).
 */

import type {
  BlockExportInfo,
  BlockExportOptions,
  BlockExportRemoveMode,
  NbdServerAddOptions,
  NbdServerOptions,
  XBlockExportDetails,
} from '../../schema/generated/types.ts';
import { findNode } from '../block/graph/find-node.ts';
import type { BlockNode, RootParent } from '../block/graph/node.ts';
import type { BlockLayer } from '../block/layer.ts';
import { activate } from '../block/open/activation.ts';
import { BlockError } from '../errors/error.ts';
import type { ClientLog, NbdServer } from '../nbd/server/server.ts';
import { isIdentifier, type ObjectTree } from '../objects/tree.ts';
import type { ExportType } from './contract.ts';
import { type BlockExport, createExport, nodeNameOf, shutDownExport } from './export.ts';
import { NbdService, type Origin } from './nbd/service.ts';
import { type ExportStatistics, latencyBordersUs, REQUEST_KINDS } from './statistics.ts';
import { createExportTypes, type ExportTypes } from './types.ts';

/** What can be seen of an export. */
export interface ExportView {
  readonly id: string;
  readonly type: BlockExportInfo['type'];
  readonly nodeName: string;
  readonly clients: number;
  readonly inFlight: number;
  readonly statistics: ExportStatistics;
}

export class ExportTable {
  readonly #layer: BlockLayer;
  readonly #objects: ObjectTree;
  readonly #nbd: NbdService;
  readonly #types: ExportTypes;
  /** By id, oldest first. Ids of exports that are being made map to null. */
  readonly #exports = new Map<string, BlockExport | null>();
  /** Iothread each node was moved to by an export; by node name. */
  readonly #iothreads = new Map<string, string>();

  /**
   * `log` takes lines of the log about clients; `whenServing` calls its argument once clients may be served:
   * when the daemon has executed its command line.
   */
  constructor(
    layer: BlockLayer,
    objects: ObjectTree,
    log: ClientLog = () => undefined,
    whenServing: (serve: () => void) => void = (serve) => serve(),
  ) {
    this.#layer = layer;
    this.#objects = objects;
    const mayInheritFds = (): boolean => layer.allowInheritedFd;
    const environment = { layer, objects, log, whenServing, mayInheritFds };
    this.#nbd = new NbdService(environment);
    this.#types = createExportTypes(environment, this.#nbd);
  }

  // ---- the NBD server ----------------------------------------------------------------------------------------

  /** nbd-server-start and --nbd-server. */
  startNbdServer(options: NbdServerOptions, origin: Origin, onIdle?: () => void): Promise<void> {
    return this.#nbd.start(options, origin, onIdle);
  }

  /** nbd-server-stop: its exports go with it. */
  stopNbdServer(): Promise<void> {
    return this.#nbd.stop(() => this.#closeExports((exp) => exp.type === 'nbd'));
  }

  /** Addresses the NBD server listens on; empty when there is none. */
  get nbdAddresses(): NbdServer['addresses'] {
    return this.#nbd.server?.addresses ?? [];
  }

  /** Closes exports, oldest first; their clients are disconnected all at once. */
  async #closeExports(which: (exp: BlockExport) => boolean): Promise<void> {
    const closing = [...this.#exports.values()]
      .filter((exp) => exp !== null && which(exp))
      .map((exp) => ({ exp: exp as BlockExport, done: shutDownExport(exp as BlockExport) }));
    for (const { exp, done } of closing) {
      await done;
      this.#finish(exp);
    }
  }

  // ---- exports -----------------------------------------------------------------------------------------------

  /** block-export-add and --export. */
  async add(options: BlockExportOptions): Promise<void> {
    const { id } = options;
    if (!isIdentifier(id)) throw new BlockError('Invalid block export id');
    if (this.#exports.has(id)) throw new BlockError(`Block export id '${id}' is already in use`);
    const node = findNode(this.#layer, options['node-name'], '');
    const writable = options.writable ?? false;
    if (writable && node.shownReadOnly) throw new BlockError('Cannot export read-only node as writable');
    this.#checkIothread(options, node);
    // The id is taken from here on, although making the export takes a while.
    this.#exports.set(id, null);
    try {
      // The options' type says which kind they are for, which the compiler cannot follow through a look-up.
      const type = this.#types[options.type] as unknown as ExportType;
      if (!node.active && options['allow-inactive'] !== true) await activate(node);
      const exp = await createExport(this.#layer, type, options, node, writable);
      this.#exports.set(id, exp);
    } catch (error) {
      this.#exports.delete(id);
      throw error;
    }
  }

  /** nbd-server-add: an export with its name as id; writable only if the node is. */
  async addNbd(options: NbdServerAddOptions): Promise<void> {
    const { device, name = device, description, bitmap } = options;
    const node = findNode(this.#layer, device);
    await this.add({
      type: 'nbd',
      id: name,
      'node-name': node.name,
      writable: (options.writable ?? false) && !node.shownReadOnly,
      name,
      ...(description !== undefined && { description }),
      ...(bitmap !== undefined && { bitmaps: [bitmap] }),
    });
  }

  /** block-export-del. Resolves when the export has gone, or, when it had clients, before. */
  async remove(id: string, mode: BlockExportRemoveMode = 'safe'): Promise<void> {
    const exp = this.#exports.get(id) ?? null;
    if (exp === null) throw new BlockError(`Export '${id}' is not found`);
    if (exp.shuttingDown) throw new BlockError(`Export '${id}' is already shutting down`);
    const busy = exp.running.inUse;
    if (busy && mode === 'safe') {
      throw new BlockError(`export '${id}' still in use`, {
        hint: "Use mode='hard' to force client disconnect",
      });
    }
    const done = shutDownExport(exp).then(() => this.#finish(exp));
    if (!busy) await done;
  }

  /** The options that block-export-add would take to make the exports there are, where they are now; oldest first. */
  savedOptions(): BlockExportOptions[] {
    return [...this.#exports.values()]
      .filter((exp) => exp !== null && !exp.shuttingDown)
      .map((exp) => ({ ...(exp as BlockExport).options, 'node-name': nodeNameOf(exp as BlockExport) }));
  }

  /** What the running NBD server was started with; null when there is none. */
  get nbdServerOptions(): NbdServerOptions | null {
    return this.#nbd.options;
  }

  /** query-block-exports: newest first. */
  query(): BlockExportInfo[] {
    return [...this.#exports.values()]
      .filter((exp) => exp !== null)
      .reverse()
      .map((exp) => ({
        'node-name': nodeNameOf(exp),
        'shutting-down': exp.shuttingDown,
        type: exp.type,
        id: exp.id,
      }));
  }

  /** x-query-block-exports: what exports do, newest first. */
  queryDetails(): XBlockExportDetails[] {
    const borders = latencyBordersUs();
    return [...this.#exports.values()]
      .filter((exp) => exp !== null)
      .reverse()
      .map(({ id, running, statistics }) => ({
        id,
        clients: running.clientCount,
        'latency-borders-us': borders,
        requests: REQUEST_KINDS.map((kind) => {
          const { operations, failed, bytes, totalUs, latency } = statistics[kind];
          return {
            kind,
            operations,
            failed,
            bytes,
            'total-time-us': Math.round(totalUs),
            'latency-histogram': [...latency],
          };
        }),
      }));
  }

  /** The ids of exports by what they hold their nodes with. */
  idsByBackend(): ReadonlyMap<RootParent, string> {
    return new Map(
      [...this.#exports.values()].filter((exp) => exp !== null).map((exp) => [exp.backend, exp.id]),
    );
  }

  /** Exports as they are now, with their counters; oldest first. For who watches them. */
  observe(): ExportView[] {
    return [...this.#exports.values()]
      .filter((exp) => exp !== null)
      .map((exp) => ({
        id: exp.id,
        type: exp.type,
        nodeName: nodeNameOf(exp),
        clients: exp.running.clientCount,
        inFlight: exp.backend.inFlight,
        statistics: exp.statistics,
      }));
  }

  /** Ends everything, at shutdown. */
  async closeAll(): Promise<void> {
    if (this.#nbd.server !== null) await this.stopNbdServer();
    await this.#closeExports(() => true);
  }

  /**
   * All nodes live in one event loop, but what the original would refuse is refused: to move a node to an iothread
   * while other exports use it. Without fixed-iothread it stays where it is, silently.
   */
  #checkIothread(options: BlockExportOptions, node: BlockNode): void {
    if (options.iothread === undefined) return;
    // One loop runs all of them: several are as good as the first.
    const names = [options.iothread].flat();
    const [iothread] = names;
    if (iothread === undefined) throw new BlockError('The list of iothreads must not be empty');
    for (const name of names) this.#objects.iothread(name);
    const inUse = [...this.#exports.values()].some((exp) => exp !== null && nodeNameOf(exp) === node.name);
    if (!inUse) {
      this.#iothreads.set(node.name, iothread);
    } else if (options['fixed-iothread'] === true && this.#iothreads.get(node.name) !== iothread) {
      throw new BlockError('Cannot change iothread of active block backend');
    }
  }

  /** The export has gone. */
  #finish(exp: BlockExport): void {
    if (this.#exports.get(exp.id) !== exp) return;
    this.#exports.delete(exp.id);
    const nodeName = nodeNameOf(exp);
    if (![...this.#exports.values()].some((other) => other !== null && nodeNameOf(other) === nodeName)) {
      this.#iothreads.delete(nodeName);
    }
    this.#layer.events.emit('BLOCK_EXPORT_DELETED', { id: exp.id });
  }
}
