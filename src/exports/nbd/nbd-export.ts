/**
 * A block export over NBD: a node offered to clients under a name.
 *
 * Here: one export, from the check of its options to the moment the last client has gone. Not here: the server it is
 * offered by (service.ts) and the wire (src/nbd).
 */

import type { DirtyBitmap } from '../../block/bitmaps/dirty-bitmap.ts';
import type { BackendIo } from '../../block/contract/backend-io.ts';
import { Perm } from '../../block/contract/request.ts';
import { BlockError } from '../../errors/error.ts';
import { STRING_MAX_BYTES } from '../../nbd/protocol/messages.ts';
import { DataMap } from '../../nbd/server/data-map.ts';
import type { ExportClient, NbdExport } from '../../nbd/server/export.ts';
import type { NbdServer } from '../../nbd/server/server.ts';
import type { ExportEnvironment, ExportHost, ExportType, OptionsOf, RunningExport } from '../contract.ts';
import { bitmapToExport } from './bitmaps.ts';
import type { NbdService } from './service.ts';

interface NbdExportSettings {
  readonly name: string;
  readonly description: string;
  readonly allocationDepth: boolean;
  readonly bitmaps: readonly DirtyBitmap[];
}

/** Throws when a text of the export does not fit the protocol. */
function checkExportTexts(name: string, description: string): void {
  if (Buffer.byteLength(name) > STRING_MAX_BYTES) throw new BlockError(`export name '${name}' too long`);
  if (Buffer.byteLength(description) > STRING_MAX_BYTES) {
    throw new BlockError(`description '${description}' too long`);
  }
}

class NbdBlockExport implements NbdExport, RunningExport {
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  readonly writable: boolean;
  readonly writethrough: boolean;
  readonly allocationDepth: boolean;
  /** Busy for as long as the export lives. */
  readonly bitmaps: readonly DirtyBitmap[];
  readonly multiConn: boolean;
  readonly backend: BackendIo;
  readonly dataMap: DataMap;
  paused: boolean;
  readonly #server: NbdServer;
  readonly #clients = new Set<ExportClient>();
  #stopping = false;
  #whenIdle: (() => void) | null = null;

  constructor(settings: NbdExportSettings, host: ExportHost, server: NbdServer) {
    this.name = settings.name;
    this.description = settings.description;
    this.allocationDepth = settings.allocationDepth;
    this.bitmaps = settings.bitmaps;
    this.writable = host.writable;
    this.writethrough = host.writethrough;
    this.multiConn = server.maxConnections !== 1;
    this.sizeBytes = host.node.totalBytes;
    this.backend = host.io;
    this.dataMap = new DataMap(this.sizeBytes);
    for (const bitmap of this.bitmaps) bitmap.busy = true;
    this.paused = host.paused;
    this.#server = server;
  }

  /** Clients in the transmission phase. */
  get clientCount(): number {
    return this.#clients.size;
  }

  get inUse(): boolean {
    return this.#clients.size > 0;
  }

  setPaused(paused: boolean): void {
    this.paused = paused;
    if (!paused) for (const client of this.#clients) client.resume();
  }

  /** The size is promised to the clients: the permissions see to it that nobody changes it. */
  resized(): void {}

  attach(client: ExportClient): void {
    this.#clients.add(client);
    if (this.#stopping) client.disconnect();
  }

  detach(client: ExportClient): void {
    this.#clients.delete(client);
    if (this.#clients.size === 0) this.#whenIdle?.();
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#server.removeExport(this);
    if (this.#clients.size > 0) {
      const idle = new Promise<void>((resolve) => {
        this.#whenIdle = resolve;
      });
      for (const client of this.#clients) client.disconnect();
      await idle;
    }
    for (const bitmap of this.bitmaps) bitmap.busy = false;
  }
}

/** Exports over NBD, all by the one server of `service`. */
export function nbdExportType({ layer }: ExportEnvironment, service: NbdService): ExportType<'nbd'> {
  return {
    servesInactive: true,
    // The size is promised to the clients: nobody may change it.
    permissions: (_options, writable) => ({
      perm: Perm.consistentRead | (writable ? Perm.write : 0),
      shared: Perm.all & ~Perm.resize,
    }),

    /** Cannot be interrupted: from the look for the server to the name taken there. */
    start(options: OptionsOf<'nbd'>, host: ExportHost): RunningExport {
      const { server } = service;
      if (server === null) throw new BlockError('NBD server not running');
      const { node, writable } = host;
      const { name = node.name, description = '' } = options;
      checkExportTexts(name, description);
      if (server.findExport(name) !== null)
        throw new BlockError(`NBD server already has export named '${name}'`);
      const bitmaps = (options.bitmaps ?? []).map((bitmap) => bitmapToExport(layer, node, writable, bitmap));
      const allocationDepth = options['allocation-depth'] ?? false;
      const exp = new NbdBlockExport({ name, description, allocationDepth, bitmaps }, host, server);
      server.addExport(exp);
      return exp;
    },
  };
}
