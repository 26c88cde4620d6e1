/**
 * The multiplexer: several users share one device. Output of all of them goes to it; its input goes to the user in
 * focus. The key Control-A begins a command to the multiplexer itself; "h" after it shows which there are.
 *
 * Facts: the manual of QEMU (Keys in the character backend multiplexer), and the behaviour of its 7.2.
 */

import { BlockError } from '../errors/error.ts';
import type { ChardevBackend, ChardevPort, ChardevUser } from './backend.ts';
import { ignore } from './backend.ts';
import type { Chardev } from './chardev.ts';

const MAX_USERS = 4;
const ESCAPE = 1;

const HELP = [
  ['h', 'print this help'],
  ['x', 'exit emulator'],
  ['s', 'save disk data back to file (if -snapshot)'],
  ['t', 'toggle console timestamps'],
  ['b', 'send break (magic sysrq)'],
  ['c', 'switch between console and monitor'],
  ['C-a', 'sends C-a'],
]
  .map(([key = '', text]) => `C-a ${key.padEnd(4)} ${text}\n\r`)
  .join('');

interface Seat {
  readonly user: ChardevUser;
  reading: boolean;
}

/** "[hh:mm:ss.mmm] " for a time in milliseconds. */
function timestamp(elapsedMs: number): string {
  return `[${new Date(elapsedMs).toISOString().slice(11, 23)}] `;
}

class Multiplexer {
  readonly #base: Chardev;
  readonly #requestShutdown: () => void;
  readonly #seats: Seat[] = [];
  /** The seat in focus; the newest user gets it. */
  #focus = 0;
  #escaped = false;
  #connected = false;
  /** Time stamps: when they began, and whether the next character begins a line; null: off. */
  #stamps: { startMs: number; lineStart: boolean } | null = null;

  constructor(base: Chardev, requestShutdown: () => void) {
    this.#base = base;
    this.#requestShutdown = requestShutdown;
    base.attach(
      {
        opened: () => {
          this.#connected = true;
          for (const { user } of [...this.#seats]) user.opened();
        },
        ended: () => {
          if (this.#seats.length === 0) this.#base.finish();
          for (const { user } of [...this.#seats]) user.ended();
        },
        closed: () => {
          this.#connected = false;
          this.#escaped = false;
          for (const { user } of [...this.#seats]) user.closed();
        },
        received: (data) => this.#received(data),
        drained: () => {
          for (const { user } of [...this.#seats]) user.drained();
        },
      },
      () => this.hasUsers,
    );
    this.#applyReading();
  }

  get hasUsers(): boolean {
    return this.#seats.length > 0;
  }

  /** A place for another user, who gets the focus. */
  attach(id: string, user: ChardevUser): ChardevPort {
    if (this.#seats.length >= MAX_USERS) throw new BlockError(`Device '${id}' is in use`);
    const seat: Seat = { user, reading: true };
    const base = this.#base;
    const multiplexer = this;
    this.#seats.push(seat);
    this.#focus = this.#seats.length - 1;
    this.#applyReading();
    if (this.#connected) user.opened();
    return {
      write: (data) => this.#write(data),
      get backlogBytes() {
        return multiplexer.#base.backlogBytes;
      },
      setReading: (reading) => {
        seat.reading = reading;
        this.#applyReading();
      },
      disconnect: () => base.disconnect(),
      finish: () => base.finish(),
    };
  }

  detachBase(): void {
    this.#base.detach();
  }

  /** Reads as long as the user in focus does; without users nothing is read. */
  #applyReading(): void {
    this.#base.setReading(this.#seats[this.#focus]?.reading ?? false);
  }

  #received(data: Buffer): void {
    let start = 0;
    for (let at = 0; at < data.length; at++) {
      const byte = data[at] ?? 0;
      if (this.#escaped) {
        this.#escaped = false;
        // Escape twice is the character itself: it stays in the data.
        start = byte === ESCAPE ? at : at + 1;
        if (byte !== ESCAPE) this.#command(String.fromCharCode(byte));
      } else if (byte === ESCAPE) {
        this.#deliver(data.subarray(start, at));
        this.#escaped = true;
        start = at + 1;
      }
    }
    this.#deliver(data.subarray(start));
  }

  #deliver(data: Buffer): void {
    if (data.length > 0) this.#seats[this.#focus]?.user.received(data);
  }

  #command(key: string): void {
    switch (key) {
      case 'h':
      case '?':
        this.#write(Buffer.from(`\n\r${HELP}`));
        break;
      case 'x':
        this.#write(Buffer.from('QEMU: Terminated\n\r'));
        this.#requestShutdown();
        break;
      case 't':
        this.#stamps = this.#stamps === null ? { startMs: Date.now(), lineStart: false } : null;
        break;
      case 'c':
        this.#focus = (this.#focus + 1) % Math.max(1, this.#seats.length);
        this.#applyReading();
        break;
      // Breaks have no meaning to a monitor, and there are no snapshots to save.
    }
  }

  #write(data: Buffer): void {
    this.#base.write(this.#stamps === null ? data : this.#stamped(data, this.#stamps));
  }

  #stamped(data: Buffer, stamps: { startMs: number; lineStart: boolean }): Buffer {
    let text = '';
    for (const character of data.toString('latin1')) {
      if (stamps.lineStart) text += timestamp(Date.now() - stamps.startMs);
      stamps.lineStart = character === '\n';
      text += character;
    }
    return Buffer.from(text, 'latin1');
  }
}

export interface MuxBackend extends ChardevBackend {
  readonly kind: 'mux';
  readonly hasUsers: boolean;
  attachUser(id: string, user: ChardevUser): ChardevPort;
}

/** Shares `base`, of which the multiplexer becomes the user. */
export function openMux(base: Chardev, requestShutdown: () => void): MuxBackend {
  const multiplexer = new Multiplexer(base, requestShutdown);
  return {
    kind: 'mux',
    typeName: 'chardev-mux',
    accessors: {},
    get hasUsers() {
      return multiplexer.hasUsers;
    },
    attachUser: (id, user) => multiplexer.attach(id, user),
    filename: () => 'mux',
    // Users have ports of their own: see attachUser.
    start: ignore,
    stop: ignore,
    write: ignore,
    backlogBytes: () => 0,
    setReading: ignore,
    close: () => multiplexer.detachBase(),
  };
}

/** Whether a backend is a multiplexer. */
export function isMux(backend: ChardevBackend): backend is MuxBackend {
  return backend.kind === 'mux';
}
