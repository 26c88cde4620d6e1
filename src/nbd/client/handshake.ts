/**
 * The handshake as a client: from the server's greeting to the transmission phase of one export.
 *
 * Fixed newstyle with GO, falling back to EXPORT_NAME for servers that do not know it, and oldstyle. Error texts are
 * those of qemu-storage-daemon 7.2, found by talking to it (test/peers/nbd-client-handshake.test.ts). Everything a
 * server says is hostile: payloads are bounded before they are read, and so is the number of replies.
 */

import type { ByteStream } from '../../aio/engine.ts';
import { BlockError } from '../../errors/error.ts';
import { HandshakeIo, optionName } from '../protocol/handshake-io.ts';
import { CLIENT_MAX_REPLIES, CLIENT_MAX_SIZE_BYTES, DEFAULT_MAX_PAYLOAD } from '../protocol/limits.ts';
import {
  ClientFlag,
  EXPORT_NAME_ZEROES,
  GREETING_MAGIC,
  HandshakeFlag,
  Info,
  Layouts,
  OLDSTYLE_MAGIC,
  OPTION_MAGIC,
  Option,
  Reply,
} from '../protocol/messages.ts';
import type { ReceiveBuffer } from '../protocol/receive-buffer.ts';
import { ask, checkReply, ERROR_BIT, expectReply, receive, receiveReply, sendOption } from './options.ts';

/** What a client wants of a server. */
export interface ClientWishes {
  readonly exportName: string;
  /** The context block status is read from. */
  readonly context: string;
  /** Only simple replies are to come, as the kernel's client takes them; there is no context then. */
  readonly simple?: boolean;
  /** Starts TLS on a connection; null: none is to be used. */
  readonly startTls: ((stream: ByteStream, received: Buffer) => Promise<ByteStream>) | null;
}

/** An export as its server describes it. Sizes in bytes. */
export interface RemoteExport {
  readonly sizeBytes: number;
  /** ExportFlag bits. */
  readonly flags: number;
  /** Constraints on requests; minimum and preferred are 0 where the server named none. */
  readonly minBlockBytes: number;
  readonly preferredBlockBytes: number;
  readonly maxPayloadBytes: number;
  readonly structured: boolean;
  readonly extended: boolean;
  /** Number of the context that was wished for; null: there is no block status. */
  readonly contextId: number | null;
}

/** A connection in the transmission phase. */
export interface OpenedConnection {
  readonly stream: ByteStream;
  readonly exp: RemoteExport;
}

interface BlockSizes {
  readonly min: number;
  readonly preferred: number;
  readonly max: number;
}

const NO_BLOCK_SIZES: BlockSizes = { min: 0, preferred: 0, max: DEFAULT_MAX_PAYLOAD };

/** Runs the handshake. Throws BlockError in the original's words, or ConnectionEnded; the caller closes the stream. */
export async function openExport(
  stream: ByteStream,
  rx: ReceiveBuffer,
  wishes: ClientWishes,
): Promise<OpenedConnection> {
  const io = new HandshakeIo(stream, rx);
  const magic = (await receive(io, 8, 'initial magic')).readBigUInt64BE(0);
  if (magic !== GREETING_MAGIC) throw new BlockError(`Bad initial magic received: 0x${magic.toString(16)}`);
  const style = (await receive(io, 8, 'server magic')).readBigUInt64BE(0);
  if (style === OLDSTYLE_MAGIC) return openOldstyle(io, wishes);
  if (style !== OPTION_MAGIC) throw new BlockError(`Bad server magic received: 0x${style.toString(16)}`);
  return openNewstyle(io, wishes);
}

// ---- oldstyle ------------------------------------------------------------------------------------------------

async function openOldstyle(
  io: HandshakeIo,
  { exportName, startTls }: ClientWishes,
): Promise<OpenedConnection> {
  if (startTls !== null) throw new BlockError('Server does not support STARTTLS');
  if (exportName !== '') throw new BlockError('Server does not support non-empty export names');
  const size = (await receive(io, 8, 'export length')).readBigUInt64BE(0);
  const flags = (await receive(io, 4, 'export flags')).readUInt32BE(0);
  if (flags > 0xffff) throw new BlockError(`Unexpected export flags ${flags.toString(16)}x`);
  await receive(io, EXPORT_NAME_ZEROES, 'reserved block');
  return { stream: io.stream, exp: plainExport(checkSize(size), flags) };
}

function plainExport(sizeBytes: number, flags: number): RemoteExport {
  const { min, preferred, max } = NO_BLOCK_SIZES;
  return {
    sizeBytes,
    flags,
    minBlockBytes: min,
    preferredBlockBytes: preferred,
    maxPayloadBytes: max,
    structured: false,
    extended: false,
    contextId: null,
  };
}

function checkSize(size: bigint): number {
  if (size > BigInt(CLIENT_MAX_SIZE_BYTES)) throw new BlockError('export length is too large');
  return Number(size);
}

// ---- newstyle ------------------------------------------------------------------------------------------------

async function openNewstyle(io: HandshakeIo, wishes: ClientWishes): Promise<OpenedConnection> {
  const flags = (await receive(io, 2, 'server flags')).readUInt16BE(0);
  const fixed = (flags & HandshakeFlag.fixedNewstyle) !== 0;
  const noZeroes = (flags & HandshakeFlag.noZeroes) !== 0;
  const answer = (fixed ? ClientFlag.fixedNewstyle : 0) | (noZeroes ? ClientFlag.noZeroes : 0);
  await io.send(Layouts.clientFlags.encode({ flags: answer }));
  if (wishes.startTls !== null) {
    if (!fixed) throw new BlockError('Server does not support STARTTLS');
    await startTls(io, wishes.startTls);
  }
  let extended = false;
  let structured = false;
  let contextId: number | null = null;
  if (fixed && wishes.simple !== true) {
    extended = await ask(io, Option.EXTENDED_HEADERS);
    structured = extended || (await ask(io, Option.STRUCTURED_REPLY));
    if (structured) contextId = await selectContext(io, wishes);
  }
  if (fixed) {
    const exp = await go(io, wishes.exportName);
    if (exp !== null) {
      const { min, preferred, max } = exp.sizes;
      return {
        stream: io.stream,
        exp: {
          sizeBytes: exp.sizeBytes,
          flags: exp.flags,
          minBlockBytes: min,
          preferredBlockBytes: preferred,
          maxPayloadBytes: max,
          structured,
          extended,
          contextId,
        },
      };
    }
    await checkListed(io, wishes.exportName);
  }
  const exp = await enterByName(io, wishes.exportName, noZeroes);
  return { stream: io.stream, exp: { ...exp, structured, extended, contextId } };
}

async function startTls(
  io: HandshakeIo,
  start: (stream: ByteStream, received: Buffer) => Promise<ByteStream>,
): Promise<void> {
  await sendOption(io, Option.STARTTLS);
  const reply = await receiveReply(io, Option.STARTTLS);
  if (!checkReply(Option.STARTTLS, reply) || reply.reply !== Reply.ACK)
    throw new BlockError('Server rejected request for starttls');
  // Nothing can follow the reply before our first TLS record does.
  if (io.rx.available > 0) throw new BlockError('Unexpected data before the TLS handshake');
  io.stream = await start(io.stream, Buffer.alloc(0));
}

/** Chooses the context for block status; its number, or null when the server does not have it. */
async function selectContext(io: HandshakeIo, { exportName, context }: ClientWishes): Promise<number | null> {
  const option = Option.SET_META_CONTEXT;
  await sendOption(io, option, Buffer.concat([lengthAndText(exportName), u32(1), lengthAndText(context)]));
  let id: number | null = null;
  for (let replies = 0; replies < CLIENT_MAX_REPLIES; replies++) {
    const reply = await receiveReply(io, option);
    if (reply.reply >= ERROR_BIT) return null;
    if (reply.reply === Reply.ACK) {
      if (reply.payload.length > 0) throw new BlockError('Unexpected length to ACK response');
      return id;
    }
    expectReply(reply.reply, Reply.META_CONTEXT);
    const { bytes } = Layouts.metaContextReply;
    if (reply.payload.length <= bytes) {
      throw new BlockError(
        `Failed to negotiate meta context, server answered with unexpected length ${reply.payload.length}`,
      );
    }
    const name = reply.payload.toString('utf8', bytes);
    if (name !== context) {
      throw new BlockError(
        `Failed to negotiate meta context '${context}', server answered with different context '${name}'`,
      );
    }
    if (id !== null) throw new BlockError('Server answered with more than one context');
    id = Layouts.metaContextReply.read(reply.payload).id;
  }
  throw new BlockError(`Too many replies to option ${option} (${optionName(option)})`);
}

interface GoResult {
  readonly sizeBytes: number;
  readonly flags: number;
  readonly sizes: BlockSizes;
}

/** Asks for the export. Null: the server does not know GO. */
async function go(io: HandshakeIo, exportName: string): Promise<GoResult | null> {
  await sendOption(io, Option.GO, Buffer.concat([lengthAndText(exportName), u16(1, Info.BLOCK_SIZE)]));
  let size: bigint | null = null;
  let flags = 0;
  let sizes = NO_BLOCK_SIZES;
  for (let replies = 0; replies < CLIENT_MAX_REPLIES; replies++) {
    const reply = await receiveReply(io, Option.GO);
    if (!checkReply(Option.GO, reply)) return null;
    const { payload } = reply;
    if (reply.reply === Reply.ACK) {
      if (payload.length > 0) throw new BlockError('server sent invalid NBD_REP_ACK');
      if (size === null || flags === 0) throw new BlockError('broken server omitted NBD_INFO_EXPORT');
      const sizeBytes = checkSize(size);
      return { sizeBytes, flags, sizes };
    }
    expectReply(reply.reply, Reply.INFO, 'unexpected');
    if (payload.length < 2) throw new BlockError(`NBD_REP_INFO length ${payload.length} is too short`);
    const kind = payload.readUInt16BE(0);
    if (kind === Info.EXPORT) {
      if (payload.length !== Layouts.infoExport.bytes)
        throw new BlockError(`remaining export info len ${payload.length - 2} is unexpected size`);
      const info = Layouts.infoExport.read(payload);
      size = info.sizeBytes;
      flags = info.flags;
    } else if (kind === Info.BLOCK_SIZE) {
      sizes = parseBlockSizes(payload);
    }
  }
  throw new BlockError(`Too many replies to option ${Option.GO} (${optionName(Option.GO)})`);
}

function parseBlockSizes(payload: Buffer): BlockSizes {
  if (payload.length !== Layouts.infoBlockSize.bytes)
    throw new BlockError(`remaining export info len ${payload.length - 2} is unexpected size`);
  const { minimum, preferred, maximumPayload } = Layouts.infoBlockSize.read(payload);
  if (!isPowerOf2(minimum))
    throw new BlockError(`server minimum block size ${minimum} is not a power of two`);
  if (!isPowerOf2(preferred) || preferred < minimum)
    throw new BlockError(`server preferred block size ${preferred} is not valid`);
  if (maximumPayload < minimum)
    throw new BlockError(`server maximum block size ${maximumPayload} is not valid`);
  const max = Math.min(maximumPayload, DEFAULT_MAX_PAYLOAD);
  return { min: minimum, preferred, max: max - (max % minimum) };
}

function isPowerOf2(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value));
}

/** For servers without GO: refuses an export that is not in the list, if there is a list. */
async function checkListed(io: HandshakeIo, exportName: string): Promise<void> {
  await sendOption(io, Option.LIST);
  let found = false;
  for (let replies = 0; replies < CLIENT_MAX_REPLIES; replies++) {
    const reply = await receiveReply(io, Option.LIST);
    if (!checkReply(Option.LIST, reply)) return;
    if (reply.reply === Reply.ACK) {
      if (!found && replies > 0) throw new BlockError(`No export with name '${exportName}' available`);
      return;
    }
    expectReply(reply.reply, Reply.SERVER);
    if (reply.payload.length < 4) throw new BlockError(`incorrect option length ${reply.payload.length}`);
    const nameBytes = reply.payload.readUInt32BE(0);
    if (nameBytes > reply.payload.length - 4)
      throw new BlockError("incorrect name length in server's list response");
    if (reply.payload.toString('utf8', 4, 4 + nameBytes) === exportName) found = true;
  }
  throw new BlockError(`Too many replies to option ${Option.LIST} (${optionName(Option.LIST)})`);
}

async function enterByName(io: HandshakeIo, exportName: string, noZeroes: boolean): Promise<RemoteExport> {
  await sendOption(io, Option.EXPORT_NAME, Buffer.from(exportName));
  const size = (await receive(io, 8, 'export length')).readBigUInt64BE(0);
  const flags = (await receive(io, 2, 'export flags')).readUInt16BE(0);
  if (!noZeroes) await receive(io, EXPORT_NAME_ZEROES, 'reserved block');
  return plainExport(checkSize(size), flags);
}

function u16(...values: readonly number[]): Buffer {
  const buf = Buffer.alloc(values.length * 2);
  for (const [index, value] of values.entries()) buf.writeUInt16BE(value, index * 2);
  return buf;
}

function u32(value: number): Buffer {
  const buf = Buffer.alloc(4);
  buf.writeUInt32BE(value);
  return buf;
}

function lengthAndText(text: string): Buffer {
  const bytes = Buffer.from(text);
  return Buffer.concat([u32(bytes.length), bytes]);
}
