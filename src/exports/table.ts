/**
 * All exports, and the NBD server most of them are offered by.
 *
 * Here: ids, life cycles, and the checks and error texts of the commands, whose order is the original's. Not here:
 * the parsing of commands (src/commands/block-export.ts), the wire (src/nbd).
 */

import type {
  BlockExportInfo,
  BlockExportOptions,
  BlockExportRemoveMode,
  NbdServerAddOptions,
  NbdServerOptions,
} from '../../schema/generated/types.ts';
import type { BlockBackend } from '../block/backend.ts';
import { Perm } from '../block/contract/request.ts';
import { findNode } from '../block/graph/find-node.ts';
import type { BlockNode } from '../block/graph/node.ts';
import type { BlockLayer } from '../block/layer.ts';
import { BlockError } from '../errors/error.ts';
import { DEFAULT_HANDSHAKE_MAX_SECONDS, DEFAULT_MAX_CONNECTIONS } from '../nbd/protocol/limits.ts';
import { NbdServer } from '../nbd/server/server.ts';
import type { TlsSettings } from '../nbd/server/tls.ts';
import { isIdentifier, type ObjectTree } from '../objects/tree.ts';
import { bitmapToExport } from './bitmaps.ts';
import { checkExportTexts, ExportOwner, NbdBlockExport } from './nbd-export.ts';

/** Where an NBD server was asked for: only the command line may name inherited descriptors. */
export type Origin = 'qmp' | 'command-line';

/** An export of any kind. */
type BlockExport = NbdBlockExport;

export class ExportTable {
  readonly #layer: BlockLayer;
  readonly #objects: ObjectTree;
  readonly #log: (message: string) => void;
  readonly #whenServing: (serve: () => void) => void;
  /** By id, oldest first. Ids of exports that are being made map to null. */
  readonly #exports = new Map<string, BlockExport | null>();
  /** Iothread each node was moved to by an export; by node name. */
  readonly #iothreads = new Map<string, string>();
  #server: NbdServer | null = null;
  /** A server is being started or stopped. */
  #serverBusy = false;

  /**
   * `log` is told about clients that break the protocol; `whenServing` calls its argument once clients may be served:
   * when the daemon has executed its command line.
   */
  constructor(
    layer: BlockLayer,
    objects: ObjectTree,
    log: (message: string) => void = () => undefined,
    whenServing: (serve: () => void) => void = (serve) => serve(),
  ) {
    this.#layer = layer;
    this.#objects = objects;
    this.#log = log;
    this.#whenServing = whenServing;
  }

  // ---- the NBD server ----------------------------------------------------------------------------------------

  /** nbd-server-start and --nbd-server. */
  async startNbdServer(options: NbdServerOptions, origin: Origin): Promise<void> {
    if (this.#server !== null || this.#serverBusy) throw new BlockError('NBD server already running');
    const server = new NbdServer(this.#layer.engine, {
      address: options.addr,
      tls: this.#tlsSettings(options),
      maxConnections: options['max-connections'] ?? DEFAULT_MAX_CONNECTIONS,
      handshakeMaxSeconds: options['handshake-max-seconds'] ?? DEFAULT_HANDSHAKE_MAX_SECONDS,
      allowInheritedFd: origin === 'command-line',
      whenServing: this.#whenServing,
      log: this.#log,
    });
    this.#serverBusy = true;
    try {
      await server.start();
      this.#server = server;
    } finally {
      this.#serverBusy = false;
    }
  }

  #tlsSettings(options: NbdServerOptions): TlsSettings | null {
    const id = options['tls-creds'];
    if (id === undefined) return null;
    return {
      credentials: this.#objects.tlsCreds(id, 'server'),
      authzId: options['tls-authz'] ?? null,
      findAuthorizer: (authzId) => this.#objects.authz(authzId),
    };
  }

  /** nbd-server-stop: its exports go with it. */
  async stopNbdServer(): Promise<void> {
    const server = this.#server;
    if (server === null) throw new BlockError('NBD server not running');
    this.#server = null;
    this.#serverBusy = true;
    try {
      await this.#closeExports(server);
      await server.stop();
    } finally {
      this.#serverBusy = false;
    }
  }

  /** Addresses the NBD server listens on; empty when there is none. */
  get nbdAddresses(): NbdServer['addresses'] {
    return this.#server?.addresses ?? [];
  }

  /** Closes all exports, oldest first; their clients are disconnected all at once. */
  async #closeExports(server: NbdServer): Promise<void> {
    const closing = [...this.#exports.values()]
      .filter((exp) => exp !== null)
      .map((exp) => ({ exp, done: this.#shutDown(exp, server) }));
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
    if (writable && node.readOnly) throw new BlockError('Cannot export read-only node as writable');
    this.#checkIothread(options, node);
    // The id is taken from here on, although making the export takes a while.
    this.#exports.set(id, null);
    try {
      const exp = await this.#create(options, node, writable);
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
      writable: (options.writable ?? false) && !node.readOnly,
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
    const busy = exp.clientCount > 0;
    if (busy && mode === 'safe') {
      throw new BlockError(`export '${id}' still in use`, {
        hint: "Use mode='hard' to force client disconnect",
      });
    }
    const done = this.#shutDown(exp, this.#server).then(() => this.#finish(exp));
    if (!busy) await done;
  }

  /** query-block-exports: newest first. */
  query(): BlockExportInfo[] {
    return [...this.#exports.values()]
      .filter((exp) => exp !== null)
      .reverse()
      .map((exp) => ({
        'node-name': exp.nodeName,
        'shutting-down': exp.shuttingDown,
        type: 'nbd',
        id: exp.id,
      }));
  }

  /** Ends everything, at shutdown. */
  async closeAll(): Promise<void> {
    if (this.#server !== null) await this.stopNbdServer();
  }

  /**
   * All nodes live in one event loop, but what the original would refuse is refused: to move a node to an iothread
   * while other exports use it. Without fixed-iothread it stays where it is, silently.
   */
  #checkIothread(options: BlockExportOptions, node: BlockNode): void {
    const { iothread } = options;
    if (iothread === undefined) return;
    this.#objects.iothread(iothread);
    const inUse = [...this.#exports.values()].some((exp) => exp?.nodeName === node.name);
    if (!inUse) {
      this.#iothreads.set(node.name, iothread);
    } else if (options['fixed-iothread'] === true && this.#iothreads.get(node.name) !== iothread) {
      throw new BlockError('Cannot change iothread of active block backend');
    }
  }

  async #create(options: BlockExportOptions, node: BlockNode, writable: boolean): Promise<NbdBlockExport> {
    const owner = new ExportOwner();
    // The size is promised to the clients: nobody may change it.
    const want = {
      perm: Perm.consistentRead | (writable ? Perm.write : 0),
      shared: Perm.all & ~Perm.resize,
    };
    const backend = await this.#layer.createBackend(node, want, owner);
    try {
      const sizeBytes = await backend.getLength();
      return this.#offer(options, node, writable, backend, owner, sizeBytes);
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  /** The part of the creation that cannot be interrupted: from the look for the server to the name taken there. */
  #offer(
    options: BlockExportOptions,
    node: BlockNode,
    writable: boolean,
    backend: BlockBackend,
    owner: ExportOwner,
    sizeBytes: number,
  ): NbdBlockExport {
    const server = this.#server;
    if (server === null) throw new BlockError('NBD server not running');
    const { name = node.name, description = '' } = options;
    checkExportTexts(name, description);
    if (server.findExport(name) !== null)
      throw new BlockError(`NBD server already has export named '${name}'`);
    const bitmaps = (options.bitmaps ?? []).map((bitmap) =>
      bitmapToExport(this.#layer, node, writable, bitmap),
    );
    const settings = {
      id: options.id,
      name,
      description,
      writable,
      writethrough: options.writethrough ?? false,
      allocationDepth: options['allocation-depth'] ?? false,
      bitmaps,
      multiConn: server.maxConnections !== 1,
    };
    const exp = new NbdBlockExport(settings, backend, owner, sizeBytes);
    server.addExport(exp);
    return exp;
  }

  async #shutDown(exp: NbdBlockExport, server: NbdServer | null): Promise<void> {
    server?.removeExport(exp);
    await exp.shutDown();
  }

  /** The export has gone. */
  #finish(exp: NbdBlockExport): void {
    if (this.#exports.get(exp.id) !== exp) return;
    this.#exports.delete(exp.id);
    if (![...this.#exports.values()].some((other) => other?.nodeName === exp.nodeName)) {
      this.#iothreads.delete(exp.nodeName);
    }
    this.#layer.events.emit('BLOCK_EXPORT_DELETED', { id: exp.id });
  }
}
