/**
 * An NBD server for tests of the client: by default a correct one over a buffer, and wherever the script says so a
 * wrong, slow or silent one. It shares the protocol's tables with the code under test, and nothing else.
 */

import { createServer, type Server, type Socket } from 'node:net';
import {
  BaseAllocation,
  Chunk,
  ChunkFlag,
  Command,
  CommandFlag,
  EXTENDED_REPLY_MAGIC,
  EXTENDED_REQUEST_MAGIC,
  ExportFlag,
  GREETING_MAGIC,
  Info,
  Layouts,
  NbdError,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Option,
  Reply,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../../src/nbd/protocol/messages.ts';

/** What a script says to do: send these bytes, end the connection, or keep still; undefined: what is right. */
export type Answer = Buffer | 'close' | 'silence' | undefined;

export interface ServerRequest {
  readonly type: number;
  readonly flags: number;
  readonly cookie: bigint;
  readonly offset: number;
  readonly length: number;
  readonly payload: Buffer;
}

export interface Script {
  readonly flags?: number;
  readonly sizeBytes?: number;
  readonly blockSizes?: readonly [number, number, number];
  /** Default: true and false. */
  readonly structured?: boolean;
  readonly extended?: boolean;
  /** Hangs up when nothing has happened for so long; default: never. */
  readonly hangUpMs?: number;
  /** Bytes sent first. */
  readonly greeting?: () => Answer;
  readonly option?: (option: number, payload: Buffer) => Answer;
  readonly request?: (request: ServerRequest, served: ServedConnection) => Answer;
}

export const ALL_FLAGS =
  ExportFlag.hasFlags |
  ExportFlag.sendFlush |
  ExportFlag.sendFua |
  ExportFlag.sendTrim |
  ExportFlag.sendWriteZeroes |
  ExportFlag.sendCache |
  ExportFlag.sendFastZero;

export function optionReply(option: number, reply: number, payload: Buffer | string = ''): Buffer {
  const bytes = Buffer.from(payload as string);
  return Layouts.optionReply.encode(
    { magic: OPTION_REPLY_MAGIC, option, reply, length: bytes.length },
    bytes,
  );
}

export function infoExport(size: bigint, flags: number): Buffer {
  return optionReply(
    Option.GO,
    Reply.INFO,
    Layouts.infoExport.encode({ info: Info.EXPORT, sizeBytes: size, flags }),
  );
}

export function infoBlockSize(minimum: number, preferred: number, maximumPayload: number): Buffer {
  return optionReply(
    Option.GO,
    Reply.INFO,
    Layouts.infoBlockSize.encode({ info: Info.BLOCK_SIZE, minimum, preferred, maximumPayload }),
  );
}

export function metaContext(id: number, name: string): Buffer {
  return optionReply(
    Option.SET_META_CONTEXT,
    Reply.META_CONTEXT,
    Layouts.metaContextReply.encode({ id }, Buffer.from(name)),
  );
}

/** The server's side of one connection. */
export class ServedConnection {
  readonly socket: Socket;
  readonly #script: Script;
  readonly #server: ScriptedServer;
  #received: Buffer = Buffer.alloc(0);
  #wake: (() => void) | null = null;
  #ended = false;
  structured = false;
  extended = false;

  constructor(socket: Socket, script: Script, server: ScriptedServer) {
    this.socket = socket;
    this.#script = script;
    this.#server = server;
    socket.on('data', (bytes: Buffer) => {
      this.#received = Buffer.concat([this.#received, bytes]);
      this.#wake?.();
    });
    socket.on('close', () => {
      this.#ended = true;
      this.#wake?.();
    });
    socket.on('error', () => undefined);
    if (script.hangUpMs !== undefined) socket.setTimeout(script.hangUpMs, () => socket.end());
  }

  async #read(bytes: number): Promise<Buffer> {
    while (this.#received.length < bytes) {
      if (this.#ended) throw new Error('the client has gone');
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const taken = this.#received.subarray(0, bytes);
    this.#received = this.#received.subarray(bytes);
    return taken;
  }

  /** Does what the script answers; false: nothing more is to be said. */
  #carryOut(answer: Exclude<Answer, undefined>): boolean {
    if (answer === 'close') this.socket.destroy();
    else if (answer !== 'silence') this.socket.write(answer);
    return answer !== 'close';
  }

  async run(): Promise<void> {
    const greeting =
      this.#script.greeting?.() ??
      Layouts.greeting.encode({ magic: GREETING_MAGIC, optionMagic: OPTION_MAGIC, handshakeFlags: 3 });
    if (!this.#carryOut(greeting)) return;
    await this.#read(4);
    while (!(await this.#option())) {
      // Until the export is entered.
    }
    for (;;) await this.#request();
  }

  /** True when transmission begins. */
  async #option(): Promise<boolean> {
    const head = Layouts.option.read(await this.#read(Layouts.option.bytes));
    const payload = await this.#read(head.length);
    const { option } = head;
    const scripted = this.#script.option?.(option, payload);
    if (scripted !== undefined) {
      this.#carryOut(scripted);
      return option === Option.EXPORT_NAME;
    }
    this.socket.write(this.#answerOption(option));
    return option === Option.GO;
  }

  #answerOption(option: number): Buffer {
    const { structured = true, extended = false, blockSizes, flags = ALL_FLAGS } = this.#script;
    switch (option) {
      case Option.STRUCTURED_REPLY:
        this.structured = structured;
        return optionReply(option, structured ? Reply.ACK : Reply.ERR_UNSUP);
      case Option.EXTENDED_HEADERS:
        this.extended = extended;
        if (extended) this.structured = true;
        return optionReply(option, extended ? Reply.ACK : Reply.ERR_UNSUP);
      case Option.SET_META_CONTEXT:
        return Buffer.concat([metaContext(7, 'base:allocation'), optionReply(option, Reply.ACK)]);
      case Option.GO: {
        const size = BigInt(this.#script.sizeBytes ?? this.#server.data.length);
        const sizes = blockSizes === undefined ? [] : [infoBlockSize(...blockSizes)];
        return Buffer.concat([infoExport(size, flags), ...sizes, optionReply(option, Reply.ACK)]);
      }
      default:
        return optionReply(option, Reply.ERR_UNSUP);
    }
  }

  async #request(): Promise<void> {
    const layout = this.extended ? Layouts.extendedRequest : Layouts.request;
    const head = layout.read(await this.#read(layout.bytes));
    const hasPayload = this.extended
      ? (head.flags & CommandFlag.payloadLength) !== 0
      : head.type === Command.WRITE;
    const payload = hasPayload ? Buffer.from(await this.#read(Number(head.length))) : Buffer.alloc(0);
    if (head.magic !== (this.extended ? EXTENDED_REQUEST_MAGIC : 0x25609513))
      throw new Error('bad request magic');
    const request: ServerRequest = {
      type: head.type,
      flags: head.flags,
      cookie: head.cookie,
      offset: Number(head.offset),
      length: Number(head.length),
      payload,
    };
    this.#server.requests.push(request);
    if (request.type === Command.DISC) {
      this.socket.end();
      throw new Error('the client took leave');
    }
    const answer = this.#script.request?.(request, this) ?? this.execute(request);
    this.#carryOut(answer);
  }

  /** Does what the request asks, and returns the right reply. */
  execute(request: ServerRequest): Buffer {
    const { data } = this.#server;
    const { type, offset, length, payload } = request;
    if (offset + length > data.length) return this.done(request, NbdError.EINVAL);
    if (type === Command.READ) return this.readReply(request, data.subarray(offset, offset + length));
    if (type === Command.WRITE) payload.copy(data, offset);
    if (type === Command.WRITE_ZEROES) data.fill(0, offset, offset + length);
    if (type !== Command.BLOCK_STATUS) return this.done(request);
    const zero = data.subarray(offset, offset + length).every((byte) => byte === 0);
    return this.statusReply(request, length, zero ? BaseAllocation.zero | BaseAllocation.hole : 0);
  }

  readReply(request: ServerRequest, data: Buffer): Buffer {
    if (!this.structured) return Buffer.concat([this.simple(request, 0), data]);
    const payload = Layouts.chunkOffsetData.encode({ offset: BigInt(request.offset) }, data);
    return this.chunk(request, Chunk.OFFSET_DATA, payload);
  }

  statusReply(request: ServerRequest, length: number, flags: number, id = 7): Buffer {
    if (!this.extended) {
      const extent = Layouts.extent.encode({ length, flags });
      return this.chunk(
        request,
        Chunk.BLOCK_STATUS,
        Layouts.chunkBlockStatus.encode({ contextId: id }, extent),
      );
    }
    const extent = Layouts.extentExt.encode({ length: BigInt(length), flags: BigInt(flags) });
    return this.chunk(
      request,
      Chunk.BLOCK_STATUS_EXT,
      Layouts.chunkBlockStatusExt.encode({ contextId: id, count: 1 }, extent),
    );
  }

  simple({ cookie }: ServerRequest, error: number): Buffer {
    return Layouts.simpleReply.encode({ magic: SIMPLE_REPLY_MAGIC, error, cookie });
  }

  chunk(
    { cookie, offset }: ServerRequest,
    type: number,
    payload: Buffer,
    flags: number = ChunkFlag.done,
  ): Buffer {
    const { length } = payload;
    if (this.extended) {
      return Layouts.extendedReply.encode(
        { magic: EXTENDED_REPLY_MAGIC, flags, type, cookie, offset: BigInt(offset), length: BigInt(length) },
        payload,
      );
    }
    return Layouts.structuredReply.encode(
      { magic: STRUCTURED_REPLY_MAGIC, flags, type, cookie, length },
      payload,
    );
  }

  /** A reply without data. */
  done(request: ServerRequest, error = 0): Buffer {
    const isRead = request.type === Command.READ || request.type === Command.BLOCK_STATUS;
    if (!this.extended && !(this.structured && isRead)) return this.simple(request, error);
    if (error === 0) return this.chunk(request, Chunk.NONE, Buffer.alloc(0));
    return this.chunk(request, Chunk.ERROR, Layouts.chunkError.encode({ error, textLength: 0 }));
  }
}

export class ScriptedServer {
  readonly data: Buffer;
  /** Every request that came, on any connection. */
  readonly requests: ServerRequest[] = [];
  /** Connections accepted so far. */
  connections = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  /** `script` is asked for each connection, with its number from 0. */
  private constructor(data: Buffer, script: (connection: number) => Script) {
    this.data = data;
    this.#server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.on('close', () => this.#sockets.delete(socket));
      const served = new ServedConnection(socket, script(this.connections++), this);
      served.run().catch(() => socket.destroySoon());
    });
  }

  static async listen(
    socketPath: string,
    script: Script | ((connection: number) => Script) = {},
    data: Buffer = Buffer.alloc(1024 * 1024),
  ): Promise<ScriptedServer> {
    const server = new ScriptedServer(data, typeof script === 'function' ? script : () => script);
    await new Promise<void>((resolve) => server.#server.listen(socketPath, resolve));
    return server;
  }

  /** Cuts all connections; new ones are accepted. */
  disconnectAll(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Stops listening and cuts all connections. */
  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.disconnectAll();
    await closed;
  }
}
