/**
 * Options of the handshake as a client asks them: sending one, receiving its replies, and what error replies mean.
 *
 * Replies are bounded before they are read. Error texts are the original's; see client/handshake.ts.
 */

import { BlockError } from '../../errors/error.ts';
import { type HandshakeIo, optionName } from '../protocol/handshake-io.ts';
import { CLIENT_MAX_REPLY_BYTES } from '../protocol/limits.ts';
import {
  Layouts,
  nameIn,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Reply,
  STRING_MAX_BYTES,
} from '../protocol/messages.ts';

export interface OptionReply {
  readonly reply: number;
  readonly payload: Buffer;
}

/** Replies with this bit are errors. */
export const ERROR_BIT = 0x80000000;

/** Reads `bytes`; an error names what was being read. */
export async function receive(io: HandshakeIo, bytes: number, what: string): Promise<Buffer> {
  try {
    return await io.receive(bytes);
  } catch {
    throw new BlockError(`Failed to read ${what}: Unexpected end-of-file before all data were read`);
  }
}

export async function sendOption(
  io: HandshakeIo,
  option: number,
  payload: Buffer = Buffer.alloc(0),
): Promise<void> {
  await io.send(Layouts.option.encode({ magic: OPTION_MAGIC, option, length: payload.length }, payload));
}

/** One reply to `option`. Its payload is read whole: it is bounded. */
export async function receiveReply(io: HandshakeIo, option: number): Promise<OptionReply> {
  const head = Layouts.optionReply.read(await receive(io, Layouts.optionReply.bytes, 'option reply'));
  if (head.magic !== OPTION_REPLY_MAGIC) throw new BlockError('Unexpected option reply magic');
  if (head.option !== option)
    throw new BlockError(
      `Unexpected option type ${head.option} (${optionName(head.option)}), expected ${option} (${optionName(option)})`,
    );
  if (head.length > CLIENT_MAX_REPLY_BYTES)
    throw new BlockError(`Reply to option ${option} (${optionName(option)}) is too long`);
  return { reply: head.reply, payload: await receive(io, head.length, 'option reply payload') };
}

/** Throws what an error reply means. False: the server does not know the option. */
export function checkReply(option: number, { reply, payload }: OptionReply): boolean {
  if (reply < ERROR_BIT) return true;
  const what = `option ${option} (${optionName(option)})`;
  const text = payload.subarray(0, STRING_MAX_BYTES).toString('utf8');
  const hint = text === '' ? {} : { hint: `server reported: ${text}` };
  switch (reply) {
    case Reply.ERR_UNSUP:
      return false;
    case Reply.ERR_POLICY:
      throw new BlockError(`Denied by server for ${what}`, hint);
    case Reply.ERR_INVALID:
      throw new BlockError(`Invalid parameters for ${what}`, hint);
    case Reply.ERR_PLATFORM:
      throw new BlockError(`Server lacks support for ${what}`, hint);
    case Reply.ERR_TLS_REQD:
      throw new BlockError(`TLS negotiation required before ${what}`, hint);
    case Reply.ERR_UNKNOWN:
      throw new BlockError('Requested export not available', hint);
    case Reply.ERR_SHUTDOWN:
      throw new BlockError(`Server shutting down before ${what}`, hint);
    case Reply.ERR_BLOCK_SIZE_REQD:
      throw new BlockError(`Server requires INFO_BLOCK_SIZE for ${what}`, hint);
    default:
      throw new BlockError(`Unknown error code when asking for ${what}`, hint);
  }
}

function expectAck(option: number, { reply, payload }: OptionReply): void {
  const name = optionName(option);
  if (payload.length > 0) {
    throw new BlockError(
      `Option ${option} ('${name}') response length is ${payload.length} (it should be zero)`,
    );
  }
  if (reply !== Reply.ACK) {
    throw new BlockError(
      `Server answered option ${option} (${name}) with unexpected reply ${reply} (${replyName(reply)})`,
    );
  }
}

/** Throws unless the reply is of this kind. */
export function expectReply(reply: number, expected: number, text = 'Unexpected'): void {
  if (reply === expected) return;
  throw new BlockError(
    `${text} reply type ${reply} (${replyName(reply)}), expected ${expected} (${replyName(expected)})`,
  );
}

/** The reply's name as the original writes it: "meta context". */
function replyName(reply: number): string {
  const name = nameIn(Reply, reply);
  return name === String(reply) ? '<unknown>' : name.toLowerCase().replaceAll('_', ' ');
}

/** An option without payload that the server grants (true) or does not know or refuse (false). */
export async function ask(io: HandshakeIo, option: number): Promise<boolean> {
  await sendOption(io, option);
  const reply = await receiveReply(io, option);
  // Whatever the reason of a refusal: the connection works without.
  if (reply.reply >= ERROR_BIT) return false;
  expectAck(option, reply);
  return true;
}
