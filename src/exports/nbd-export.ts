/**
 * A block export over NBD: a node offered to clients under a name.
 *
 * Here: one export, from the check of its options to the moment the last client has gone. Not here: the registry of
 * all exports (table.ts) and the wire (src/nbd).
 */

import type { BlockBackend } from '../block/backend.ts';
import type { DirtyBitmap } from '../block/bitmaps/dirty-bitmap.ts';
import type { BackendOwner } from '../block/contract/backend-io.ts';
import { hurry } from '../block/graph/drain.ts';
import { BlockError } from '../errors/error.ts';
import { STRING_MAX_BYTES } from '../nbd/protocol/messages.ts';
import { DataMap } from '../nbd/server/data-map.ts';
import type { ExportClient, NbdExport } from '../nbd/server/export.ts';

export interface NbdExportSettings {
  readonly id: string;
  readonly name: string;
  readonly description: string;
  readonly writable: boolean;
  readonly writethrough: boolean;
  readonly allocationDepth: boolean;
  readonly bitmaps: readonly DirtyBitmap[];
  readonly multiConn: boolean;
}

/** Throws when a text of the export does not fit the protocol. */
export function checkExportTexts(name: string, description: string): void {
  if (Buffer.byteLength(name) > STRING_MAX_BYTES) throw new BlockError(`export name '${name}' too long`);
  if (Buffer.byteLength(description) > STRING_MAX_BYTES) {
    throw new BlockError(`description '${description}' too long`);
  }
}

/**
 * The node's side of an export: what it does in a drained section. Made before the export, because the backend
 * wants to know its owner.
 */
export class ExportOwner implements BackendOwner {
  #depth = 0;
  #onChange: ((paused: boolean) => void) | null = null;

  /** Exports are nameless block devices to the permission system, as in the original. */
  describe(): string {
    return 'an unnamed block device';
  }

  drainedBegin(): void {
    this.#depth++;
    if (this.#depth === 1) this.#onChange?.(true);
  }

  drainedEnd(): void {
    this.#depth--;
    if (this.#depth === 0) this.#onChange?.(false);
  }

  /** Reports changes from now on; returns whether the node is drained. */
  watch(onChange: (paused: boolean) => void): boolean {
    this.#onChange = onChange;
    return this.#depth > 0;
  }
}

export class NbdBlockExport implements NbdExport {
  readonly id: string;
  readonly name: string;
  readonly description: string;
  readonly sizeBytes: number;
  readonly writable: boolean;
  readonly writethrough: boolean;
  readonly allocationDepth: boolean;
  /** Busy for as long as the export lives. */
  readonly bitmaps: readonly DirtyBitmap[];
  readonly multiConn: boolean;
  readonly backend: BlockBackend;
  readonly dataMap: DataMap;
  paused: boolean;
  /** Removed by the user, but some of its requests are still under way. */
  shuttingDown = false;
  readonly #clients = new Set<ExportClient>();
  #whenIdle: (() => void) | null = null;
  #gone: Promise<void> | null = null;
  /** Where it was when it let go of its node. */
  #lastNodeName: string | null = null;

  constructor(settings: NbdExportSettings, backend: BlockBackend, owner: ExportOwner, sizeBytes: number) {
    this.id = settings.id;
    this.name = settings.name;
    this.description = settings.description;
    this.writable = settings.writable;
    this.writethrough = settings.writethrough;
    this.allocationDepth = settings.allocationDepth;
    this.bitmaps = settings.bitmaps;
    this.multiConn = settings.multiConn;
    this.sizeBytes = sizeBytes;
    this.backend = backend;
    this.dataMap = new DataMap(sizeBytes);
    for (const bitmap of this.bitmaps) bitmap.busy = true;
    this.paused = owner.watch((paused) => {
      this.paused = paused;
      if (!paused) for (const client of this.#clients) client.resume();
    });
  }

  /** The node that is offered now: another one may take its place. */
  get nodeName(): string {
    return this.#lastNodeName ?? this.backend.nodeName;
  }

  /** Clients in the transmission phase. */
  get clientCount(): number {
    return this.#clients.size;
  }

  attach(client: ExportClient): void {
    this.#clients.add(client);
    if (this.shuttingDown) client.disconnect();
  }

  detach(client: ExportClient): void {
    this.#clients.delete(client);
    if (this.#clients.size === 0) this.#whenIdle?.();
  }

  /** Disconnects the clients, waits for their last request and lets go of the node. Idempotent. */
  shutDown(): Promise<void> {
    this.#gone ??= this.#shutDown();
    return this.#gone;
  }

  async #shutDown(): Promise<void> {
    this.shuttingDown = true;
    if (this.#clients.size > 0) {
      const idle = new Promise<void>((resolve) => {
        this.#whenIdle = resolve;
      });
      for (const client of this.#clients) client.disconnect();
      // Throttling must not keep an export that nobody wants any more.
      const relax = hurry(this.backend.node);
      await idle;
      relax();
    }
    for (const bitmap of this.bitmaps) bitmap.busy = false;
    this.#lastNodeName = this.backend.nodeName;
    await this.backend.close();
  }
}
