/**
 * A vhost-user connection: whole messages with their descriptors, over a UNIX socket.
 *
 * Both sides use it. Messages are taken one after another: the next one is read when the handler of the last has
 * finished. Sending does not wait; a peer that lets the socket's buffer fill up is cut off.
 */

import { readInto, receiveWithFds, sendWithFds } from '../../aio/descriptors.ts';
import { addressOf, closeFd, shutdownSocket } from '../../aio/ffi.ts';
import { createWatch, type ReadableWatch } from '../../aio/poller.ts';
import { E } from '../../errors/errno.ts';
import {
  encodeMessage,
  Flag,
  HEADER_BYTES,
  MESSAGE_FDS_MAX,
  type Message,
  PAYLOAD_BYTES_MAX,
  VERSION,
} from './messages.ts';

export interface ChannelOwner {
  /** Handles a message. Throwing, or rejecting, ends the connection. */
  message(message: Message): void | Promise<void>;
  /** The connection has ended, once; `why` is null when the peer just left. */
  ended(why: string | null): void;
}

export class Channel {
  readonly #fd: number;
  readonly #owner: ChannelOwner;
  readonly #watch: ReadableWatch;
  readonly #buffer = Buffer.allocUnsafeSlow(HEADER_BYTES + PAYLOAD_BYTES_MAX);
  readonly #bufferAddr = addressOf(this.#buffer);
  #received = 0;
  #fds: number[] = [];
  #closed = false;
  #handling = false;

  /** Takes over `fd`; reads from start() on. */
  constructor(fd: number, owner: ChannelOwner) {
    this.#fd = fd;
    this.#owner = owner;
    this.#watch = createWatch(fd, () => this.#read());
  }

  start(): void {
    this.#watch.start();
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Sends a message. */
  send(request: number, flags: number, payload: Buffer, fds: readonly number[] = []): void {
    if (this.#closed) return;
    const message = encodeMessage(request, flags, payload);
    const sent = sendWithFds(this.#fd, addressOf(message), message.length, fds);
    if (sent !== message.length) this.#end(sent < 0 && sent !== -E.EAGAIN ? null : 'the peer does not read');
  }

  /** Ends the connection; the owner is told. Idempotent. */
  close(): void {
    this.#end(null);
  }

  #end(why: string | null): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch.stop();
    shutdownSocket(this.#fd);
    closeFd(this.#fd);
    for (const fd of this.#fds.splice(0)) closeFd(fd);
    this.#owner.ended(why);
  }

  /** Something has come: reads as many messages as are there and can be handled at once. */
  #read(): void {
    while (!this.#closed && !this.#handling) {
      const message = this.#receive();
      if (message === null) return;
      let handled: void | Promise<void>;
      try {
        handled = this.#owner.message(message);
      } catch (error) {
        this.#fail(message, error);
        return;
      }
      if (handled instanceof Promise) this.#await(message, handled);
      else for (const fd of message.fds) closeFd(fd);
    }
  }

  #await(message: Message, handled: Promise<void>): void {
    this.#handling = true;
    this.#watch.stop();
    handled.then(
      () => {
        this.#handling = false;
        for (const fd of message.fds) closeFd(fd);
        if (this.#closed) return;
        this.#watch.start();
        this.#read();
      },
      (error: unknown) => this.#fail(message, error),
    );
  }

  #fail(message: Message, error: unknown): void {
    this.#handling = false;
    for (const fd of message.fds) closeFd(fd);
    this.#end(error instanceof Error ? error.message : String(error));
  }

  /** The next message, if it is there in full. */
  #receive(): Message | null {
    for (;;) {
      const wanted =
        this.#received < HEADER_BYTES ? HEADER_BYTES : HEADER_BYTES + this.#buffer.readUInt32LE(8);
      if (this.#received >= HEADER_BYTES) {
        const problem = this.#problem(wanted - HEADER_BYTES);
        if (problem !== null) {
          this.#end(problem);
          return null;
        }
        if (this.#received === wanted) return this.#takeMessage(wanted);
      }
      const at = this.#bufferAddr + this.#received;
      const left = wanted - this.#received;
      // Descriptors come with the first byte of their message.
      const got =
        this.#received === 0 ? receiveWithFds(this.#fd, at, left, this.#fds) : readInto(this.#fd, at, left);
      if (got === -E.EAGAIN || got === -E.EINTR) return null;
      if (got <= 0) {
        const why = got === -E.EMSGSIZE ? 'too many descriptors' : null;
        this.#end(this.#received > 0 ? 'the peer left within a message' : why);
        return null;
      }
      this.#received += got;
      if (this.#fds.length > MESSAGE_FDS_MAX) {
        this.#end('too many descriptors');
        return null;
      }
    }
  }

  #problem(payloadBytes: number): string | null {
    if ((this.#buffer.readUInt32LE(4) & Flag.version) !== VERSION) return 'a message of another version';
    if (payloadBytes > PAYLOAD_BYTES_MAX) return `a message with ${payloadBytes} bytes of payload`;
    return null;
  }

  #takeMessage(bytes: number): Message {
    const message = {
      request: this.#buffer.readUInt32LE(0),
      flags: this.#buffer.readUInt32LE(4),
      payload: Buffer.from(this.#buffer.subarray(HEADER_BYTES, bytes)),
      fds: this.#fds,
    };
    this.#received = 0;
    this.#fds = [];
    return message;
  }
}
