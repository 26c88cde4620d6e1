/**
 * What an NBD connection sees of an export.
 *
 * Here: the record and what is computed from it for the wire. Not here: the registry and life cycle (src/exports).
 */

import type { DirtyBitmap } from '../../block/bitmaps/dirty-bitmap.ts';
import type { BackendIo } from '../../block/contract/backend-io.ts';
import { ExportFlag } from '../protocol/messages.ts';
import type { DataMap } from './data-map.ts';

/** A connection in the transmission phase, as its export sees it. */
export interface ExportClient {
  /** The export may start requests again. */
  resume(): void;
  /** Ends the connection at once. */
  disconnect(): void;
}

/** State shared by the connections of one export. */
export interface NbdExport {
  readonly name: string;
  /** Text for humans; empty when there is none. */
  readonly description: string;
  /** Size in bytes; fixed while the export lives. */
  readonly sizeBytes: number;
  readonly writable: boolean;
  /** Every write goes to stable storage before it is answered. */
  readonly writethrough: boolean;
  /** Whether clients may select qemu:allocation-depth. */
  readonly allocationDepth: boolean;
  /** Bitmaps that clients may select as qemu:dirty-bitmap:NAME; each has a name. */
  readonly bitmaps: readonly DirtyBitmap[];
  /** The promise of CAN_MULTI_CONN: all connections share one backend and so one cache. */
  readonly multiConn: boolean;
  readonly backend: BackendIo;
  /** Drained: connections start no requests. */
  readonly paused: boolean;
  /** Where reads need not ask for holes. */
  readonly dataMap: DataMap;
  /** Counts the connection as a user until `detach`. */
  attach(client: ExportClient): void;
  detach(client: ExportClient): void;
}

/** Transmission flags for a client. */
export function transmissionFlags(exp: NbdExport, structured: boolean, extended: boolean): number {
  let flags = ExportFlag.hasFlags | ExportFlag.sendFlush | ExportFlag.sendFua | ExportFlag.sendCache;
  flags |= exp.writable
    ? ExportFlag.sendTrim | ExportFlag.sendWriteZeroes | ExportFlag.sendFastZero
    : ExportFlag.readOnly;
  if (exp.multiConn) flags |= ExportFlag.canMultiConn;
  if (structured || extended) flags |= ExportFlag.sendDf;
  if (extended) flags |= ExportFlag.blockStatusPayload;
  return flags;
}
