/**
 * A character device: a named byte channel with one user at most.
 *
 * The device connects its user (a monitor) with its backend, copies output to the log file, and lets the backend be
 * replaced while nobody uses it.
 */

import { closeSync, constants, writeSync } from 'node:fs';
import type { ChardevCommon } from '../../schema/generated/types.ts';
import { openHostOutput } from '../aio/host/files.ts';
import { E } from '../errors/errno.ts';
import { BlockError, errnoError, errnoOf } from '../errors/error.ts';
import type { ChardevBackend, ChardevPort, ChardevUser } from './backend.ts';
import { isMux } from './mux.ts';

/** Opens the log file of the common options; null when none is asked for. */
export function openLogFile({ logfile, logappend = false }: ChardevCommon): number | null {
  if (logfile === undefined) return null;
  try {
    return openHostOutput(logfile, constants.O_CREAT | (logappend ? constants.O_APPEND : constants.O_TRUNC));
  } catch (error) {
    throw errnoError(`Could not create '${logfile}'`, errnoOf(error));
  }
}

export class Chardev implements ChardevPort {
  readonly id: string;
  #backend: ChardevBackend;
  #logFd: number | null;
  /** Time stamps in the log: whether the next byte begins a line; null: none are wanted. */
  #atLineStart: boolean | null;
  #user: ChardevUser | null = null;
  #isOpen: () => boolean = () => true;

  constructor(id: string, backend: ChardevBackend, logFd: number | null, stamped = false) {
    this.id = id;
    this.#backend = backend;
    this.#logFd = logFd;
    this.#atLineStart = stamped ? true : null;
  }

  get backend(): ChardevBackend {
    return this.#backend;
  }

  /** Somebody depends on the device. A multiplexer stays for good, as in the original. */
  get inUse(): boolean {
    return this.#user !== null || isMux(this.#backend);
  }

  /** What query-chardev calls an open frontend. */
  get hasOpenUser(): boolean {
    return isMux(this.#backend) ? this.#backend.hasUsers : this.#user !== null && this.#isOpen();
  }

  /** Makes `user` the user of the device, or one of those of a multiplexer. `isOpen`: whether it counts as open. */
  attach(user: ChardevUser, isOpen: () => boolean = () => true): ChardevPort {
    if (isMux(this.#backend)) return this.#backend.attachUser(this.id, user);
    if (this.#user !== null) throw new BlockError(`Device '${this.id}' is in use`);
    this.#user = user;
    this.#isOpen = isOpen;
    this.#backend.start(user);
    return this;
  }

  detach(): void {
    this.#user = null;
    this.#backend.stop();
  }

  write(data: Buffer): void {
    this.#log(data);
    this.#backend.write(data);
  }

  /** Bytes written that the peer has not taken yet. */
  get backlogBytes(): number {
    return this.#backend.backlogBytes();
  }

  setReading(reading: boolean): void {
    this.#backend.setReading(reading);
  }

  /** Drops the connected peer. */
  disconnect(): void {
    this.#backend.disconnect?.();
  }

  /** Drops the connected peer when it has taken what was written. */
  finish(): void {
    this.#backend.finish?.();
  }

  /** Puts another backend in the place of the present one, which is closed. The device must not be in use. */
  replaceBackend(backend: ChardevBackend, logFd: number | null, stamped = false): void {
    const old = this.#backend;
    this.#closeLog();
    this.#backend = backend;
    this.#logFd = logFd;
    this.#atLineStart = stamped ? true : null;
    old.close();
  }

  close(): void {
    this.#user = null;
    this.#backend.close();
    this.#closeLog();
  }

  #log(data: Buffer): void {
    if (this.#logFd === null) return;
    try {
      writeSync(this.#logFd, this.#atLineStart === null ? data : this.#stamped(data));
    } catch (error) {
      // Neither a full disk nor a pipe that nobody empties must stop the monitor; the pipe's reader may come back.
      if (errnoOf(error) !== E.EAGAIN) this.#closeLog();
    }
  }

  /** The data with the time at the start of each line. */
  #stamped(data: Buffer): Buffer {
    const stamp = Buffer.from(`${new Date().toISOString()} `);
    const parts: Buffer[] = [];
    for (let at = 0; at < data.length; ) {
      const end = data.indexOf(10, at);
      const next = end < 0 ? data.length : end + 1;
      if (this.#atLineStart === true) parts.push(stamp);
      parts.push(data.subarray(at, next));
      this.#atLineStart = end >= 0;
      at = next;
    }
    return Buffer.concat(parts);
  }

  #closeLog(): void {
    if (this.#logFd !== null) closeSync(this.#logFd);
    this.#logFd = null;
  }
}
