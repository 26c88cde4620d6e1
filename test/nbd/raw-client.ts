/**
 * An NBD client that does exactly what it is told, sense or nonsense, and writes down what comes back.
 *
 * Every function that receives returns text, so that a conversation with one server can be compared with the same
 * conversation with another.
 */

import net from 'node:net';
import {
  Chunk,
  ChunkFlag,
  Command,
  EXPORT_NAME_ZEROES,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  Info,
  Layouts,
  NbdError,
  nameIn,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Option,
  REQUEST_MAGIC,
  Reply,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../../src/nbd/protocol/messages.ts';
import { limitMs } from '../patience.ts';

/** Something other than the bytes waited for. */
/** No byte for so long, on an idle machine: the server has nothing to say. */
const SILENCE_MS = 3000;

export class NoBytes extends Error {}

export function u32(...values: number[]): Buffer {
  const buf = Buffer.alloc(values.length * 4);
  for (const [i, value] of values.entries()) buf.writeUInt32BE(value, i * 4);
  return buf;
}

export function u16(...values: number[]): Buffer {
  const buf = Buffer.alloc(values.length * 2);
  for (const [i, value] of values.entries()) buf.writeUInt16BE(value, i * 2);
  return buf;
}

/** A length-prefixed string. */
export function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u32(bytes.length), bytes]);
}

/** Payload of INFO and GO. */
export function infoPayload(name: string, infos: readonly number[] = []): Buffer {
  return Buffer.concat([text(name), u16(infos.length, ...infos)]);
}

/** Payload of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function metaPayload(name: string, queries: readonly string[]): Buffer {
  return Buffer.concat([text(name), u32(queries.length), ...queries.map(text)]);
}

export interface RequestFields {
  readonly type: number;
  readonly flags?: number;
  readonly cookie?: bigint;
  readonly offset?: bigint;
  readonly length?: bigint;
  readonly magic?: number;
}

/** Short text of a payload: its run lengths of equal bytes. */
export function describeBytes(bytes: Buffer): string {
  const runs: string[] = [];
  for (let at = 0; at < bytes.length && runs.length < 8; ) {
    let end = at + 1;
    while (end < bytes.length && bytes[end] === bytes[at]) end++;
    runs.push(`${bytes[at]?.toString(16)}*${end - at}`);
    at = end;
  }
  return `[${runs.join(' ')}]`;
}

export class RawClient {
  readonly socket: net.Socket;
  private chunks: Buffer[] = [];
  private have = 0;
  private ended: string | null = null;
  private wake: (() => void) | null = null;

  constructor(socket: net.Socket) {
    this.socket = socket;
    socket.on('data', (chunk) => {
      this.chunks.push(chunk);
      this.have += chunk.length;
      this.wake?.();
    });
    const end = () => {
      this.ended ??= 'EOF';
      this.wake?.();
    };
    socket.on('end', end).on('close', end).on('error', end);
  }

  static connect(path: string): Promise<RawClient> {
    return RawClient.over(net.connect({ path }));
  }

  /** When the socket has connected. */
  static async over(socket: net.Socket): Promise<RawClient> {
    await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject));
    return new RawClient(socket);
  }

  send(...parts: readonly Buffer[]): this {
    this.socket.write(Buffer.concat(parts));
    return this;
  }

  /**
   * Exactly `bytes` bytes; throws NoBytes at end of stream, or when nothing comes for a while: for `silenceMs`, where
   * a test shows that nothing does.
   */
  async receive(bytes: number, silenceMs?: number): Promise<Buffer> {
    const timeoutMs = silenceMs ?? limitMs(SILENCE_MS);
    let deadline = Date.now() + timeoutMs;
    let had = this.have;
    while (this.have < bytes) {
      if (this.ended !== null) throw new NoBytes(this.have > 0 ? `EOF after ${this.have} bytes` : 'EOF');
      if (this.have !== had) deadline = Date.now() + timeoutMs;
      had = this.have;
      const left = deadline - Date.now();
      if (left <= 0) throw new NoBytes(this.have > 0 ? `silence after ${this.have} bytes` : 'silence');
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.wake = null;
    }
    const all = Buffer.concat(this.chunks);
    this.have -= bytes;
    this.chunks = this.have > 0 ? [all.subarray(bytes)] : [];
    return all.subarray(0, bytes);
  }

  /** Whether the server has closed the connection, waiting as `receive` does. */
  async end(silenceMs?: number): Promise<string> {
    try {
      const byte = await this.receive(1, silenceMs);
      return `byte ${byte[0]}`;
    } catch (error) {
      return (error as Error).message;
    }
  }

  close(): void {
    this.socket.destroy();
  }

  // ---- handshake ----

  /** Receives the greeting and answers with `flags`. */
  async greet(flags = 3): Promise<string> {
    const greeting = Layouts.greeting.read(await this.receive(Layouts.greeting.bytes));
    this.send(u32(flags));
    return `greeting ${greeting.magic.toString(16)} ${greeting.optionMagic.toString(16)} flags=${greeting.handshakeFlags}`;
  }

  /** Sends an option; `length` overrides the true payload length, `magic` the option magic. */
  option(
    option: number,
    payload: Buffer = Buffer.alloc(0),
    length = payload.length,
    magic = OPTION_MAGIC,
  ): this {
    return this.send(Layouts.option.encode({ magic, option, length }, payload));
  }

  /** One option reply as text. */
  async optionReply(): Promise<string> {
    const head = Layouts.optionReply.read(await this.receive(Layouts.optionReply.bytes));
    const payload = await this.receive(head.length);
    const name = `${nameIn(Option, head.option)} ${nameIn(Reply, head.reply)}`;
    if (head.magic !== OPTION_REPLY_MAGIC) return `bad option reply magic ${head.magic.toString(16)}`;
    if (head.reply >= 0x80000000) return `${name} "${payload}"`;
    if (head.reply === Reply.INFO) return `${name} ${describeInfo(payload)}`;
    if (head.reply === Reply.SERVER) {
      const nameLength = payload.readUInt32BE(0);
      return `${name} "${payload.subarray(4, 4 + nameLength)}" "${payload.subarray(4 + nameLength)}"`;
    }
    if (head.reply === Reply.META_CONTEXT)
      return `${name} ${payload.readUInt32BE(0)} "${payload.subarray(4)}"`;
    return payload.length > 0 ? `${name} ${payload.toString('hex')}` : name;
  }

  /** Option replies up to and including an ACK, an error or the end. */
  async optionReplies(): Promise<string[]> {
    const lines: string[] = [];
    for (;;) {
      try {
        const line = await this.optionReply();
        lines.push(line);
        if (line.includes(' ACK') || line.includes(' ERR_') || line.startsWith('bad')) return lines;
      } catch (error) {
        if (!(error instanceof NoBytes)) throw error;
        lines.push(error.message);
        return lines;
      }
    }
  }

  /** Sends an option and returns its replies. */
  async ask(option: number, payload?: Buffer, length?: number): Promise<string[]> {
    this.option(option, payload, length);
    return this.optionReplies();
  }

  /** Greeting, the given options, then GO; throws when GO fails. */
  async enter(
    name: string,
    setup: { structured?: boolean; extended?: boolean; contexts?: string[] } = {},
  ): Promise<void> {
    await this.greet();
    if (setup.structured === true) await this.ask(Option.STRUCTURED_REPLY);
    if (setup.extended === true) await this.ask(Option.EXTENDED_HEADERS);
    if (setup.contexts !== undefined)
      await this.ask(Option.SET_META_CONTEXT, metaPayload(name, setup.contexts));
    const replies = await this.ask(Option.GO, infoPayload(name));
    if (!replies.at(-1)?.includes('ACK')) throw new Error(`GO failed: ${replies.join('; ')}`);
  }

  /** Answer to EXPORT_NAME as text. */
  async exportNameReply(zeroes: boolean): Promise<string> {
    const reply = Layouts.exportNameReply.read(await this.receive(Layouts.exportNameReply.bytes));
    if (zeroes) await this.receive(EXPORT_NAME_ZEROES);
    return `size=${reply.sizeBytes} flags=${reply.flags.toString(2)}`;
  }

  // ---- transmission ----

  request(fields: RequestFields, payload: Buffer = Buffer.alloc(0)): this {
    return this.send(
      Layouts.request.encode(
        {
          magic: fields.magic ?? REQUEST_MAGIC,
          flags: fields.flags ?? 0,
          type: fields.type,
          cookie: fields.cookie ?? 1n,
          offset: fields.offset ?? 0n,
          length: Number(fields.length ?? 0n),
        },
        payload,
      ),
    );
  }

  extendedRequest(fields: RequestFields, payload: Buffer = Buffer.alloc(0)): this {
    return this.send(
      Layouts.extendedRequest.encode(
        {
          magic: fields.magic ?? EXTENDED_REQUEST_MAGIC,
          flags: fields.flags ?? 0,
          type: fields.type,
          cookie: fields.cookie ?? 1n,
          offset: fields.offset ?? 0n,
          length: fields.length ?? 0n,
        },
        payload,
      ),
    );
  }

  /**
   * One reply as text: a simple one (with `readBytes` of data after it when it carries no error), or chunks up to
   * the one with the DONE flag.
   */
  async reply(readBytes = 0): Promise<string> {
    const lines: string[] = [];
    try {
      for (;;) {
        const magic = await this.receive(4);
        switch (magic.readUInt32BE(0)) {
          case SIMPLE_REPLY_MAGIC: {
            const rest = await this.receive(Layouts.simpleReply.bytes - 4);
            const reply = Layouts.simpleReply.read(Buffer.concat([magic, rest]));
            lines.push(`simple #${reply.cookie} ${errorName(reply.error)}`);
            if (reply.error === 0 && readBytes > 0) lines.push(describeBytes(await this.receive(readBytes)));
            return lines.join(' ');
          }
          case STRUCTURED_REPLY_MAGIC: {
            const rest = await this.receive(Layouts.structuredReply.bytes - 4);
            const reply = Layouts.structuredReply.read(Buffer.concat([magic, rest]));
            const payload = await this.receive(reply.length);
            lines.push(`chunk #${reply.cookie} flags=${reply.flags} ${describeChunk(reply.type, payload)}`);
            if ((reply.flags & ChunkFlag.done) !== 0) return lines.join(' | ');
            break;
          }
          case EXTENDED_REPLY_MAGIC: {
            const rest = await this.receive(Layouts.extendedReply.bytes - 4);
            const reply = Layouts.extendedReply.read(Buffer.concat([magic, rest]));
            const payload = await this.receive(Number(reply.length));
            lines.push(
              `ext #${reply.cookie} @${reply.offset} flags=${reply.flags} ${describeChunk(reply.type, payload)}`,
            );
            if ((reply.flags & ChunkFlag.done) !== 0) return lines.join(' | ');
            break;
          }
          default:
            return `bad reply magic ${magic.toString('hex')}`;
        }
      }
    } catch (error) {
      if (!(error instanceof NoBytes)) throw error;
      lines.push(error.message);
      return lines.join(' ');
    }
  }

  async transact(fields: RequestFields, payload?: Buffer): Promise<string> {
    this.request(fields, payload);
    return this.reply(fields.type === Command.READ ? Number(fields.length ?? 0n) : 0);
  }

  async transactExtended(fields: RequestFields, payload?: Buffer): Promise<string> {
    this.extendedRequest(fields, payload);
    return this.reply();
  }
}

export function errorName(error: number): string {
  return error === 0 ? 'ok' : nameIn(NbdError, error);
}

function describeInfo(payload: Buffer): string {
  const type = payload.readUInt16BE(0);
  switch (type) {
    case Info.EXPORT: {
      const info = Layouts.infoExport.read(payload);
      return `EXPORT size=${info.sizeBytes} flags=${info.flags.toString(2)}`;
    }
    case Info.BLOCK_SIZE: {
      const info = Layouts.infoBlockSize.read(payload);
      return `BLOCK_SIZE ${info.minimum}/${info.preferred}/${info.maximumPayload}`;
    }
    default:
      return `${nameIn(Info, type)} "${payload.subarray(2)}"`;
  }
}

function describeChunk(type: number, payload: Buffer): string {
  const name = nameIn(Chunk, type);
  switch (type) {
    case Chunk.NONE:
      return name;
    case Chunk.OFFSET_DATA:
      return `${name} @${payload.readBigUInt64BE(0)} ${describeBytes(payload.subarray(8))}`;
    case Chunk.OFFSET_HOLE:
      return `${name} @${payload.readBigUInt64BE(0)} ${payload.readUInt32BE(8)}`;
    case Chunk.BLOCK_STATUS: {
      const extents: string[] = [];
      for (let at = 4; at < payload.length; at += 8)
        extents.push(`${payload.readUInt32BE(at)}:${payload.readUInt32BE(at + 4)}`);
      return `${name} ctx=${payload.readUInt32BE(0)} ${extents.join(' ')}`;
    }
    case Chunk.BLOCK_STATUS_EXT: {
      const extents: string[] = [];
      for (let at = 8; at < payload.length; at += 16)
        extents.push(`${payload.readBigUInt64BE(at)}:${payload.readBigUInt64BE(at + 8)}`);
      return `${name} ctx=${payload.readUInt32BE(0)} n=${payload.readUInt32BE(4)} ${extents.join(' ')}`;
    }
    case Chunk.ERROR:
    case Chunk.ERROR_OFFSET: {
      const textLength = payload.readUInt16BE(4);
      const rest = payload.subarray(6 + textLength);
      const at = rest.length === 8 ? ` @${rest.readBigUInt64BE(0)}` : '';
      return `${name} ${errorName(payload.readUInt32BE(0))} "${payload.subarray(6, 6 + textLength)}"${at}`;
    }
    default:
      return `${name} ${payload.toString('hex')}`;
  }
}
