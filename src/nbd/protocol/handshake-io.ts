/**
 * Reading and writing in the handshake: exact reads within one option's payload, replies gathered into one write.
 */

import type { ByteStream } from '../../aio/engine.ts';
import { allocateIoMemory, type IoMemory } from '../../aio/memory.ts';
import { Layouts, nameIn, OPTION_REPLY_MAGIC, Option, STRING_MAX_BYTES } from './messages.ts';
import { ConnectionEnded, type ReceiveBuffer } from './receive-buffer.ts';

/** Replies gathered before they are sent even if more follow. */
const MAX_GATHERED_BYTES = 64 * 1024;

/** The option's payload is not what it should be: the client gets an ERR_INVALID with this text. */
export class InvalidOption extends Error {}

/** Both directions of a connection in the handshake. The stream changes when TLS starts. */
export class HandshakeIo {
  stream: ByteStream;
  readonly rx: ReceiveBuffer;
  #out: Buffer[] = [];
  #outBytes = 0;
  #mem: IoMemory | null = null;

  constructor(stream: ByteStream, rx: ReceiveBuffer) {
    this.stream = stream;
    this.rx = rx;
  }

  /** Takes exactly `bytes`, after sending what was gathered. */
  async receive(bytes: number): Promise<Buffer> {
    if (this.rx.available < bytes) {
      await this.flush();
      await this.rx.need(this.stream, bytes);
    }
    return this.rx.take(bytes);
  }

  async skip(bytes: number): Promise<void> {
    if (this.rx.available < bytes) await this.flush();
    await this.rx.skip(this.stream, bytes);
  }

  /** Gathers bytes to be sent. */
  async send(bytes: Buffer): Promise<void> {
    this.#out.push(bytes);
    this.#outBytes += bytes.length;
    if (this.#outBytes > MAX_GATHERED_BYTES) await this.flush();
  }

  async reply(option: number, reply: number, payload: Buffer = Buffer.alloc(0)): Promise<void> {
    await this.send(
      Layouts.optionReply.encode(
        { magic: OPTION_REPLY_MAGIC, option, reply, length: payload.length },
        payload,
      ),
    );
  }

  /** Sends what was gathered. */
  async flush(): Promise<void> {
    if (this.#outBytes === 0) return;
    const bytes = Buffer.concat(this.#out);
    this.#out = [];
    this.#outBytes = 0;
    if (this.#mem === null || this.#mem.buf.length < bytes.length) this.#mem = allocateIoMemory(bytes.length);
    bytes.copy(this.#mem.buf);
    const sent = await this.stream.write([{ mem: this.#mem, start: 0, length: bytes.length }]);
    if (sent < 0) throw new ConnectionEnded();
  }
}

/** The payload of one option, read piece by piece. */
export class OptionPayload {
  readonly #io: HandshakeIo;
  readonly option: number;
  /** Bytes not read yet. */
  left: number;

  constructor(io: HandshakeIo, option: number, length: number) {
    this.#io = io;
    this.option = option;
    this.left = length;
  }

  async #bytes(bytes: number): Promise<Buffer> {
    if (bytes > this.left)
      throw new InvalidOption(`Inconsistent lengths in option ${optionName(this.option)}`);
    this.left -= bytes;
    return this.#io.receive(bytes);
  }

  async u16(): Promise<number> {
    return (await this.#bytes(2)).readUInt16BE(0);
  }

  async u32(): Promise<number> {
    return (await this.#bytes(4)).readUInt32BE(0);
  }

  /** `bytes` bytes as text. */
  async string(bytes: number): Promise<string> {
    return (await this.#bytes(bytes)).toString('utf8');
  }

  /** A length and that many bytes: the name of an export. */
  async exportName(): Promise<string> {
    const bytes = await this.u32();
    if (bytes > STRING_MAX_BYTES) throw new InvalidOption(`Invalid name length: ${bytes}`);
    return this.string(bytes);
  }

  /** Passes over `bytes` bytes. */
  async skip(bytes: number): Promise<void> {
    if (bytes > this.left)
      throw new InvalidOption(`Inconsistent lengths in option ${optionName(this.option)}`);
    this.left -= bytes;
    await this.#io.skip(bytes);
  }

  /** Passes over what is left. */
  async drain(): Promise<void> {
    await this.skip(this.left);
  }

  /** Throws unless everything was read. */
  end(): void {
    if (this.left > 0) throw new InvalidOption(`option '${optionName(this.option)}' has unexpected length`);
  }
}

/** The option's name as the original writes it: "structured reply", "<unknown>". */
export function optionName(option: number): string {
  const name = nameIn(Option, option);
  return name === String(option) ? '<unknown>' : name.toLowerCase().replaceAll('_', ' ');
}
