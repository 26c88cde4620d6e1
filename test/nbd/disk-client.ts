/**
 * A pipelining NBD client for tests: requests as promises, replies of all three styles put together into buffers.
 */

import {
  Chunk,
  ChunkFlag,
  Command,
  CommandFlag,
  EXTENDED_REPLY_MAGIC,
  Layouts,
  SIMPLE_REPLY_MAGIC,
} from '../../src/nbd/protocol/messages.ts';
import { NoBytes, type RawClient } from './raw-client.ts';

export type Style = 'simple' | 'structured' | 'extended';

interface Pending {
  readonly data: Buffer | null;
  readonly offset: bigint;
  resolve(data: Buffer): void;
  reject(error: Error): void;
}

export class DiskClient {
  readonly #raw: RawClient;
  readonly #style: Style;
  readonly #pending = new Map<bigint, Pending>();
  #cookie = 0n;
  readonly done: Promise<void>;

  private constructor(raw: RawClient, style: Style) {
    this.#raw = raw;
    this.#style = style;
    this.done = this.#receive();
  }

  static async enter(raw: RawClient, name: string, style: Style): Promise<DiskClient> {
    await raw.enter(name, { structured: style === 'structured', extended: style === 'extended' });
    return new DiskClient(raw, style);
  }

  /** On a connection that has got as far as GO. */
  static over(raw: RawClient, style: Style): DiskClient {
    return new DiskClient(raw, style);
  }

  read(offset: number, length: number, flags = 0): Promise<Buffer> {
    return this.#request(Command.READ, offset, length, flags, Buffer.alloc(length, 0xee));
  }

  async write(offset: number, data: Buffer, flags = 0): Promise<void> {
    await this.#request(Command.WRITE, offset, data.length, flags, null, data);
  }

  async command(type: number, offset: number, length: number, flags = 0): Promise<void> {
    await this.#request(type, offset, length, flags, null);
  }

  async leave(): Promise<void> {
    const fields = { type: Command.DISC };
    if (this.#style === 'extended') this.#raw.extendedRequest(fields);
    else this.#raw.request(fields);
    await this.done;
    this.#raw.close();
  }

  #request(
    type: number,
    offset: number,
    length: number,
    flags: number,
    data: Buffer | null,
    payload?: Buffer,
  ): Promise<Buffer> {
    this.#cookie++;
    const cookie = this.#cookie;
    const fields = { type, cookie, offset: BigInt(offset), length: BigInt(length) };
    return new Promise((resolve, reject) => {
      this.#pending.set(cookie, { data, offset: BigInt(offset), resolve, reject });
      if (this.#style !== 'extended') this.#raw.request({ ...fields, flags }, payload);
      else {
        const extra = payload === undefined ? 0 : CommandFlag.payloadLength;
        this.#raw.extendedRequest({ ...fields, flags: flags | extra }, payload);
      }
    });
  }

  async #receive(): Promise<void> {
    try {
      for (;;) {
        const magic = await this.#raw.receive(4);
        if (magic.readUInt32BE(0) === SIMPLE_REPLY_MAGIC) await this.#simple(magic);
        else await this.#chunk(magic);
      }
    } catch (error) {
      if (!(error instanceof NoBytes)) throw error;
      for (const { reject } of this.#pending.values()) reject(error);
    }
  }

  #find(cookie: bigint): Pending {
    const pending = this.#pending.get(cookie);
    if (pending === undefined) throw new Error(`reply to nothing: #${cookie}`);
    return pending;
  }

  #finish(cookie: bigint, error: number): void {
    const pending = this.#find(cookie);
    this.#pending.delete(cookie);
    if (error === 0) pending.resolve(pending.data ?? Buffer.alloc(0));
    else pending.reject(new Error(`NBD error ${error}`));
  }

  async #simple(magic: Buffer): Promise<void> {
    const rest = await this.#raw.receive(Layouts.simpleReply.bytes - 4);
    const { cookie, error } = Layouts.simpleReply.read(Buffer.concat([magic, rest]));
    const { data } = this.#find(cookie);
    if (data !== null && this.#style !== 'simple') throw new Error('simple reply to a read');
    if (error === 0 && data !== null) (await this.#raw.receive(data.length)).copy(data);
    this.#finish(cookie, error);
  }

  async #chunk(magic: Buffer): Promise<void> {
    const extended = magic.readUInt32BE(0) === EXTENDED_REPLY_MAGIC;
    if (extended !== (this.#style === 'extended')) throw new Error('wrong style of reply');
    const layout = extended ? Layouts.extendedReply : Layouts.structuredReply;
    const head = layout.read(Buffer.concat([magic, await this.#raw.receive(layout.bytes - 4)]));
    const payload = await this.#raw.receive(Number(head.length));
    const { data, offset } = this.#find(head.cookie);
    let error = 0;
    if (head.type === Chunk.OFFSET_DATA) {
      payload.subarray(8).copy(data as Buffer, Number(payload.readBigUInt64BE(0) - offset));
    } else if (head.type === Chunk.OFFSET_HOLE) {
      const at = Number(payload.readBigUInt64BE(0) - offset);
      (data as Buffer).fill(0, at, at + payload.readUInt32BE(8));
    } else if (head.type === Chunk.ERROR) {
      error = payload.readUInt32BE(0);
    }
    if ((head.flags & ChunkFlag.done) !== 0) this.#finish(head.cookie, error);
  }
}
