/** What a server offers: its exports with their sizes, flags, block sizes and metadata contexts. Nothing is opened. */

import type { ByteStream } from '../../aio/engine.ts';
import { BlockError } from '../../errors/error.ts';
import { HandshakeIo } from '../protocol/handshake-io.ts';
import { CLIENT_MAX_REPLIES } from '../protocol/limits.ts';
import {
  ClientFlag,
  GREETING_MAGIC,
  HandshakeFlag,
  Info,
  Layouts,
  OPTION_MAGIC,
  Option,
  Reply,
} from '../protocol/messages.ts';
import type { ReceiveBuffer } from '../protocol/receive-buffer.ts';
import { ask, checkReply, ERROR_BIT, expectReply, receive, receiveReply, sendOption } from './options.ts';

export interface ListedExport {
  readonly name: string;
  description: string;
  sizeBytes: bigint;
  /** ExportFlag bits; 0 where the server does not tell. */
  flags: number;
  /** Null: the server names none. */
  blockSizes: { readonly min: number; readonly preferred: number; readonly max: number } | null;
  /** Null: the server has none to offer. */
  contexts: string[] | null;
}

/** Bound of what a server may list. */
const MAX_EXPORTS = 10_000;

/** Asks for everything; the caller closes the stream. Throws BlockError. */
export async function listExports(
  stream: ByteStream,
  rx: ReceiveBuffer,
  startTls: ((stream: ByteStream, received: Buffer) => Promise<ByteStream>) | null,
): Promise<ListedExport[]> {
  const io = new HandshakeIo(stream, rx);
  const magic = (await receive(io, 8, 'initial magic')).readBigUInt64BE(0);
  if (magic !== GREETING_MAGIC) throw new BlockError(`Bad initial magic received: 0x${magic.toString(16)}`);
  const style = (await receive(io, 8, 'server magic')).readBigUInt64BE(0);
  if (style !== OPTION_MAGIC) throw new BlockError('Server does not support export lists');
  const flags = (await receive(io, 2, 'server flags')).readUInt16BE(0);
  if ((flags & HandshakeFlag.fixedNewstyle) === 0)
    throw new BlockError('Server does not support export lists');
  const noZeroes = (flags & HandshakeFlag.noZeroes) !== 0 ? ClientFlag.noZeroes : 0;
  await io.send(Layouts.clientFlags.encode({ flags: ClientFlag.fixedNewstyle | noZeroes }));
  if (startTls !== null) {
    await sendOption(io, Option.STARTTLS);
    const reply = await receiveReply(io, Option.STARTTLS);
    if (!checkReply(Option.STARTTLS, reply) || reply.reply !== Reply.ACK)
      throw new BlockError('Server rejected request for starttls');
    io.stream = await startTls(io.stream, Buffer.alloc(0));
  }
  const structured = await ask(io, Option.STRUCTURED_REPLY);
  const exports = await listNames(io);
  for (const exp of exports) {
    await askInfo(io, exp);
    if (structured) await askContexts(io, exp);
  }
  await sendOption(io, Option.ABORT);
  return exports;
}

async function listNames(io: HandshakeIo): Promise<ListedExport[]> {
  const exports: ListedExport[] = [];
  await sendOption(io, Option.LIST);
  while (exports.length < MAX_EXPORTS) {
    const reply = await receiveReply(io, Option.LIST);
    if (!checkReply(Option.LIST, reply)) throw new BlockError('Server does not support export lists');
    if (reply.reply === Reply.ACK) return exports;
    expectReply(reply.reply, Reply.SERVER);
    const { payload } = reply;
    if (payload.length < 4) throw new BlockError(`incorrect option length ${payload.length}`);
    const end = 4 + payload.readUInt32BE(0);
    if (end > payload.length) throw new BlockError("incorrect name length in server's list response");
    exports.push({
      name: payload.toString('utf8', 4, end),
      description: payload.toString('utf8', end),
      sizeBytes: 0n,
      flags: 0,
      blockSizes: null,
      contexts: null,
    });
  }
  throw new BlockError(`The server lists more than ${MAX_EXPORTS} exports`);
}

async function askInfo(io: HandshakeIo, exp: ListedExport): Promise<void> {
  const wanted = Buffer.alloc(8);
  wanted.writeUInt16BE(3, 0);
  for (const [index, kind] of [Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE].entries())
    wanted.writeUInt16BE(kind, 2 + index * 2);
  await sendOption(io, Option.INFO, Buffer.concat([lengthAndText(exp.name), wanted]));
  for (let replies = 0; replies < CLIENT_MAX_REPLIES; replies++) {
    const { reply, payload } = await receiveReply(io, Option.INFO);
    // A server may list more than it tells about.
    if (reply >= ERROR_BIT || reply === Reply.ACK) return;
    expectReply(reply, Reply.INFO, 'unexpected');
    if (payload.length < 2) throw new BlockError(`NBD_REP_INFO length ${payload.length} is too short`);
    const kind = payload.readUInt16BE(0);
    if (kind === Info.EXPORT && payload.length === Layouts.infoExport.bytes) {
      const info = Layouts.infoExport.read(payload);
      exp.sizeBytes = info.sizeBytes;
      exp.flags = info.flags;
    } else if (kind === Info.DESCRIPTION) exp.description = payload.toString('utf8', 2);
    else if (kind === Info.BLOCK_SIZE && payload.length === Layouts.infoBlockSize.bytes) {
      const { minimum, preferred, maximumPayload } = Layouts.infoBlockSize.read(payload);
      exp.blockSizes = { min: minimum, preferred, max: maximumPayload };
    }
  }
  throw new BlockError('Too many replies to option 6 (info)');
}

async function askContexts(io: HandshakeIo, exp: ListedExport): Promise<void> {
  await sendOption(io, Option.LIST_META_CONTEXT, Buffer.concat([lengthAndText(exp.name), Buffer.alloc(4)]));
  const contexts: string[] = [];
  for (let replies = 0; replies < CLIENT_MAX_REPLIES; replies++) {
    const { reply, payload } = await receiveReply(io, Option.LIST_META_CONTEXT);
    if (reply >= ERROR_BIT) return;
    if (reply === Reply.ACK) {
      exp.contexts = contexts;
      return;
    }
    expectReply(reply, Reply.META_CONTEXT);
    contexts.push(payload.toString('utf8', Layouts.metaContextReply.bytes));
  }
  throw new BlockError('Too many replies to option 9 (list meta context)');
}

function lengthAndText(text: string): Buffer {
  const bytes = Buffer.from(text);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}
