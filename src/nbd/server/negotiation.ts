/**
 * The handshake phase of an NBD server connection: from the greeting to the transmission phase or the end.
 *
 * Fixed newstyle with NO_ZEROES. Replies, texts and the cases that end the connection are those of
 * qemu-storage-daemon 7.2, compared by transcript (test/peers/nbd-wire.test.ts); extended headers follow the branch
 * extension-ext-header of the protocol document.
 */

import type { ByteStream } from '../../aio/engine.ts';
import { HandshakeIo, InvalidOption, OptionPayload, optionName } from '../protocol/handshake-io.ts';
import { MAX_OPTION_LENGTH, MAX_PAYLOAD } from '../protocol/limits.ts';
import {
  ClientFlag,
  EXPORT_NAME_ZEROES,
  GREETING_MAGIC,
  HandshakeFlag,
  Info,
  Layouts,
  OPTION_MAGIC,
  Option,
  Reply,
  STRING_MAX_BYTES,
} from '../protocol/messages.ts';
import type { ReceiveBuffer } from '../protocol/receive-buffer.ts';
import { type MetaContext, readQueries } from './contexts.ts';
import { type NbdExport, transmissionFlags } from './export.ts';

/** What the handshake needs of the server. */
export interface NegotiationHost {
  findExport(name: string): NbdExport | null;
  /** In the order in which LIST names them. */
  listExports(): Iterable<NbdExport>;
  /** Null when the server has no TLS credentials; otherwise everything but STARTTLS needs TLS first. */
  readonly startTls: ((stream: ByteStream, received: Buffer) => Promise<ByteStream>) | null;
}

/** A client that entered the transmission phase. */
export interface NegotiatedClient {
  readonly exp: NbdExport;
  readonly stream: ByteStream;
  /** Replies are chunks. Also true with extended headers. */
  readonly structured: boolean;
  readonly extended: boolean;
  /** Selected for this export, in the order of replies. */
  readonly contexts: readonly MetaContext[];
}

/** The client broke the protocol: the connection is closed without another word. */
export class NegotiationError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'NegotiationError';
  }
}

interface State {
  readonly io: HandshakeIo;
  readonly host: NegotiationHost;
  fixedNewstyle: boolean;
  noZeroes: boolean;
  tls: boolean;
  structured: boolean;
  extended: boolean;
  /** The last successful SET_META_CONTEXT; it counts for its own export only. */
  selection: { readonly exp: NbdExport; readonly contexts: readonly MetaContext[] } | null;
}

type Outcome = { readonly enter: NbdExport } | 'next' | 'end';

/**
 * Runs the handshake. Null when the client left in good order (ABORT); throws NegotiationError or ConnectionEnded
 * when it did not.
 */
export async function negotiate(
  stream: ByteStream,
  rx: ReceiveBuffer,
  host: NegotiationHost,
): Promise<NegotiatedClient | null> {
  const io = new HandshakeIo(stream, rx);
  const state: State = {
    io,
    host,
    fixedNewstyle: false,
    noZeroes: false,
    tls: false,
    structured: false,
    extended: false,
    selection: null,
  };
  await io.send(
    Layouts.greeting.encode({
      magic: GREETING_MAGIC,
      optionMagic: OPTION_MAGIC,
      handshakeFlags: HandshakeFlag.fixedNewstyle | HandshakeFlag.noZeroes,
    }),
  );
  await receiveClientFlags(state);
  for (;;) {
    const outcome = await handleOption(state);
    if (outcome === 'next') continue;
    await io.flush();
    if (outcome === 'end') return null;
    return {
      exp: outcome.enter,
      stream: io.stream,
      structured: state.structured,
      extended: state.extended,
      contexts: state.selection?.exp === outcome.enter ? state.selection.contexts : [],
    };
  }
}

async function receiveClientFlags(state: State): Promise<void> {
  const { flags } = Layouts.clientFlags.read(await state.io.receive(Layouts.clientFlags.bytes));
  const unknown = (flags & ~(ClientFlag.fixedNewstyle | ClientFlag.noZeroes)) >>> 0;
  if (unknown !== 0) throw new NegotiationError(`Unknown client flags 0x${unknown.toString(16)} received`);
  state.fixedNewstyle = (flags & ClientFlag.fixedNewstyle) !== 0;
  state.noZeroes = (flags & ClientFlag.noZeroes) !== 0;
}

async function handleOption(state: State): Promise<Outcome> {
  const { io } = state;
  const head = Layouts.option.read(await io.receive(Layouts.option.bytes));
  if (head.magic !== OPTION_MAGIC) throw new NegotiationError('Bad magic received');
  if (head.length > MAX_OPTION_LENGTH) {
    throw new NegotiationError(`len (${head.length} ) is larger than max len (${MAX_OPTION_LENGTH})`);
  }
  const payload = new OptionPayload(io, head.option, head.length);
  if (state.host.startTls !== null && !state.tls) return handleOptionBeforeTls(state, payload);
  if (!state.fixedNewstyle && head.option !== Option.EXPORT_NAME) {
    throw new NegotiationError(`Unsupported option ${head.option} (${optionName(head.option)})`);
  }
  try {
    return await dispatchOption(state, payload);
  } catch (error) {
    if (!(error instanceof InvalidOption)) throw error;
    await payload.drain();
    await refuse(state, payload.option, Reply.ERR_INVALID, error.message);
    return 'next';
  }
}

/** With TLS required, nothing but STARTTLS is answered with anything but an error. */
async function handleOptionBeforeTls(state: State, payload: OptionPayload): Promise<Outcome> {
  const { option } = payload;
  if (!state.fixedNewstyle) throw new NegotiationError(`Unsupported option 0x${option.toString(16)}`);
  if (option === Option.STARTTLS) {
    if (payload.left === 0) return startTls(state);
    await payload.drain();
    await refuse(state, option, Reply.ERR_INVALID, "option 'starttls' has unexpected length");
    return 'end';
  }
  const text = `Option 0x${option.toString(16)} not permitted before TLS`;
  // EXPORT_NAME has no error reply.
  if (option === Option.EXPORT_NAME) throw new NegotiationError(text);
  await payload.drain();
  await refuse(state, option, Reply.ERR_TLS_REQD, text);
  return option === Option.ABORT ? 'end' : 'next';
}

async function dispatchOption(state: State, payload: OptionPayload): Promise<Outcome> {
  switch (payload.option) {
    case Option.EXPORT_NAME:
      return handleExportName(state, payload);
    case Option.ABORT:
      await payload.drain();
      await state.io.reply(Option.ABORT, Reply.ACK);
      return 'end';
    case Option.LIST:
      payload.end();
      return handleList(state);
    case Option.INFO:
    case Option.GO:
      return handleInfo(state, payload);
    case Option.STARTTLS:
      payload.end();
      if (state.tls) return refuse(state, Option.STARTTLS, Reply.ERR_INVALID, 'TLS already enabled');
      return refuse(state, Option.STARTTLS, Reply.ERR_POLICY, 'TLS not configured');
    case Option.STRUCTURED_REPLY:
      payload.end();
      return handleStructuredReply(state);
    case Option.EXTENDED_HEADERS:
      payload.end();
      return handleExtendedHeaders(state);
    case Option.LIST_META_CONTEXT:
    case Option.SET_META_CONTEXT:
      return handleMetaContext(state, payload);
    default:
      await payload.drain();
      return refuse(
        state,
        payload.option,
        Reply.ERR_UNSUP,
        `Unsupported option ${payload.option} (${optionName(payload.option)})`,
      );
  }
}

async function refuse(state: State, option: number, reply: number, text: string): Promise<'next'> {
  await state.io.reply(option, reply, Buffer.from(text));
  return 'next';
}

/** A client may name what it likes; the reply repeats no more than a line of it. */
function unknownExport(state: State, option: number, name: string): Promise<'next'> {
  const shown = name.length > 80 ? `${name.slice(0, 80)}...` : name;
  return refuse(state, option, Reply.ERR_UNKNOWN, `export '${shown}' not present`);
}

async function startTls(state: State): Promise<'next'> {
  const { io, host } = state;
  if (host.startTls === null) throw new NegotiationError('TLS not configured');
  await io.reply(Option.STARTTLS, Reply.ACK);
  await io.flush();
  // Whatever came before encryption belongs to the TLS handshake, never to the protocol inside it.
  io.stream = await host.startTls(io.stream, io.rx.take(io.rx.available));
  state.tls = true;
  state.structured = false;
  state.extended = false;
  state.selection = null;
  return 'next';
}

async function handleExportName(state: State, payload: OptionPayload): Promise<Outcome> {
  if (payload.left > STRING_MAX_BYTES) throw new NegotiationError('Bad length received');
  // The extension forbids it: this option's reply cannot say what the client should know.
  if (state.extended) throw new NegotiationError('export name after extended headers');
  const exp = state.host.findExport(await payload.string(payload.left));
  if (exp === null) throw new NegotiationError('export not found');
  const { io } = state;
  await io.send(
    Layouts.exportNameReply.encode({
      sizeBytes: BigInt(exp.sizeBytes),
      flags: transmissionFlags(exp, state.structured, state.extended),
    }),
  );
  if (!state.noZeroes) await io.send(Buffer.alloc(EXPORT_NAME_ZEROES));
  return { enter: exp };
}

async function handleList(state: State): Promise<'next'> {
  const { io, host } = state;
  for (const exp of host.listExports()) {
    const name = Buffer.from(exp.name);
    const payload = Layouts.serverReply.encode(
      { nameLength: name.length },
      name,
      Buffer.from(exp.description),
    );
    await io.reply(Option.LIST, Reply.SERVER, payload);
  }
  await io.reply(Option.LIST, Reply.ACK);
  return 'next';
}

async function handleInfo(state: State, payload: OptionPayload): Promise<Outcome> {
  const { option } = payload;
  const name = await payload.exportName();
  const count = await payload.u16();
  const wanted = new Set<number>();
  for (let i = 0; i < count; i++) wanted.add(await payload.u16());
  payload.end();
  const exp = state.host.findExport(name);
  if (exp === null) return unknownExport(state, option, name);

  await sendInfos(state, option, exp, wanted);
  const alignment = exp.backend.requestAlignmentBytes;
  if (option === Option.INFO && !wanted.has(Info.BLOCK_SIZE) && alignment > 1) {
    // Told what it did not ask for, the client is asked to ask.
    return refuse(state, option, Reply.ERR_BLOCK_SIZE_REQD, 'request NBD_INFO_BLOCK_SIZE to use this export');
  }
  await state.io.reply(option, Reply.ACK);
  return option === Option.GO ? { enter: exp } : 'next';
}

async function sendInfos(
  state: State,
  option: number,
  exp: NbdExport,
  wanted: ReadonlySet<number>,
): Promise<void> {
  const { io } = state;
  const info = (payload: Buffer) => io.reply(option, Reply.INFO, payload);
  if (wanted.has(Info.NAME)) await info(Layouts.infoText.encode({ info: Info.NAME }, Buffer.from(exp.name)));
  if (exp.description !== '') {
    await info(Layouts.infoText.encode({ info: Info.DESCRIPTION }, Buffer.from(exp.description)));
  }
  // A client that goes on without having asked for block sizes may not heed them: it is told that anything goes.
  const alignment = exp.backend.requestAlignmentBytes;
  const strict = wanted.has(Info.BLOCK_SIZE) || option === Option.INFO;
  await info(
    Layouts.infoBlockSize.encode({
      info: Info.BLOCK_SIZE,
      minimum: strict ? alignment : 1,
      preferred: Math.max(4096, alignment),
      // Advice, as the original gives it: longer requests are split below.
      maximumPayload: Math.min(MAX_PAYLOAD, exp.backend.maxTransferBytes || MAX_PAYLOAD),
    }),
  );
  await info(
    Layouts.infoExport.encode({
      info: Info.EXPORT,
      sizeBytes: BigInt(exp.sizeBytes),
      flags: transmissionFlags(exp, state.structured, state.extended),
    }),
  );
}

async function handleStructuredReply(state: State): Promise<'next'> {
  const { STRUCTURED_REPLY: option } = Option;
  if (state.extended) {
    return refuse(state, option, Reply.ERR_EXT_HEADER_REQD, 'extended headers already negotiated');
  }
  if (state.structured)
    return refuse(state, option, Reply.ERR_INVALID, 'structured reply already negotiated');
  state.structured = true;
  await state.io.reply(option, Reply.ACK);
  return 'next';
}

async function handleExtendedHeaders(state: State): Promise<'next'> {
  const { EXTENDED_HEADERS: option } = Option;
  if (state.extended) return refuse(state, option, Reply.ERR_INVALID, 'extended headers already negotiated');
  state.extended = true;
  state.structured = true;
  await state.io.reply(option, Reply.ACK);
  return 'next';
}

async function handleMetaContext(state: State, payload: OptionPayload): Promise<'next'> {
  const { option } = payload;
  const listing = option === Option.LIST_META_CONTEXT;
  if (!listing) {
    state.selection = null;
    if (!state.structured) {
      await payload.drain();
      const text = `request option '${optionName(option)}' when structured reply is not negotiated`;
      return refuse(state, option, Reply.ERR_INVALID, text);
    }
  }
  const name = await payload.exportName();
  const exp = state.host.findExport(name);
  if (exp === null) {
    await payload.drain();
    return unknownExport(state, option, name);
  }
  const contexts = await readQueries(payload, exp, listing);
  for (const context of contexts) {
    const id = listing ? 0 : context.id;
    await state.io.reply(
      option,
      Reply.META_CONTEXT,
      Layouts.metaContextReply.encode({ id }, Buffer.from(context.name)),
    );
  }
  if (!listing) state.selection = { exp, contexts };
  await state.io.reply(option, Reply.ACK);
  // Bytes after the last query are not drained: like the original, the next option then has no valid start.
  return 'next';
}
