/**
 * The contract between a character device and what it is made of.
 *
 * A backend moves bytes to and from one kind of place (socket, file, ring buffer). The device (chardev.ts) has the
 * id and the user, and may get another backend while it lives.
 */

import type { ChardevBackendKind } from '../../schema/generated/types.ts';
import type { QomAccessors } from '../objects/qom.ts';

/** What a backend reports to its device, and a device to its user. */
export interface BackendEvents {
  /** A peer is there. */
  opened(): void;
  /** The peer sends no more. It still receives, until `finish` is called. */
  ended(): void;
  /** The peer has gone; another may come. */
  closed(): void;
  received(data: Buffer): void;
  /** Output that had piled up has been taken. */
  drained(): void;
}

/** Who uses a device: told of peers and data. */
export type ChardevUser = BackendEvents;

/** What a user may do with the device it is attached to. */
export interface ChardevPort {
  write(data: Buffer): void;
  /** Bytes written that the peer has not taken yet. */
  readonly backlogBytes: number;
  /** Stops and resumes the reading of input. */
  setReading(reading: boolean): void;
  /** Drops the connected peer. */
  disconnect(): void;
  /** Drops the connected peer when it has taken what was written. */
  finish(): void;
}

export interface ChardevBackend {
  readonly kind: ChardevBackendKind;
  /** QOM type. */
  readonly typeName: string;
  readonly accessors: QomAccessors;
  /** Path of the pseudo terminal; pty only. */
  readonly pty?: string;
  /** What query-chardev shows. */
  filename(): string;
  /** Starts reporting: `opened` at once if a peer is there already. Called once a user is attached. */
  start(events: BackendEvents): void;
  /** Stops reporting; the peer stays connected and unread. */
  stop(): void;
  /** Sends bytes; without a peer they are lost. */
  write(data: Buffer): void;
  /** Bytes given to `write` that the peer has not taken yet. */
  backlogBytes(): number;
  /** Stops and resumes reading from the peer. */
  setReading(reading: boolean): void;
  /** Drops the peer that is connected now, if the kind of backend has such a thing. */
  disconnect?(): void;
  /** Sends a break, if the kind of backend knows such a thing. */
  sendBreak?(): void;
  /** Drops it when it has taken what was written. */
  finish?(): void;
  /** Output is sent or given up, and everything released. */
  close(): void;
}

/** Nothing to do: for backends that have no input or no output. */
export function ignore(): void {}
