/** Servers that go wrong in the handshake, each in its own way; see nbd-client-handshake.test.ts. */

import {
  ExportFlag,
  GREETING_MAGIC,
  HandshakeFlag,
  Info,
  Layouts,
  OLDSTYLE_MAGIC,
  OPTION_MAGIC,
  Option,
  Reply,
} from '../../src/nbd/protocol/messages.ts';
import {
  ALL_FLAGS,
  infoBlockSize,
  infoExport,
  metaContext,
  optionReply,
  type Script,
} from '../nbd/scripted-server.ts';

const { encode: greeting } = Layouts.greeting;
const MiB = 1024 * 1024;

/** A script that answers one option in its own way. */
function answering(option: number, answer: (payload: Buffer) => Buffer | 'close'): Script {
  return { option: (asked, payload) => (asked === option ? answer(payload) : undefined) };
}

function goAnswer(...replies: readonly Buffer[]): Script {
  return answering(Option.GO, () => Buffer.concat(replies));
}

const ack = optionReply(Option.GO, Reply.ACK);
const exported = infoExport(BigInt(MiB), ALL_FLAGS);

function errorsOf(option: number): Record<string, Script> {
  const entries = Object.entries({ ...Reply, ERR_LATER: 0x80001234 })
    .filter(([name]) => name.startsWith('ERR_'))
    .flatMap(([name, reply]) => [
      [`option ${option}: ${name}`, answering(option, () => optionReply(option, reply))],
      [
        `option ${option}: ${name} with text`,
        answering(option, () => optionReply(option, reply, 'so it is')),
      ],
    ]);
  return Object.fromEntries(entries) as Record<string, Script>;
}

function bytes(...values: readonly number[]): Buffer {
  return Buffer.from(values);
}

const greetings: Record<string, Script> = {
  'closes at once': { greeting: () => 'close' },
  'half a magic': { greeting: () => Buffer.from('NBDM') },
  'wrong magic': { greeting: () => Buffer.from('SSH-2.0-OpenSSH_9.2\r\n') },
  'wrong second magic': {
    greeting: () => greeting({ magic: GREETING_MAGIC, optionMagic: 0x1234n, handshakeFlags: 3 }),
  },
  'not fixed newstyle': {
    greeting: () => greeting({ magic: GREETING_MAGIC, optionMagic: OPTION_MAGIC, handshakeFlags: 0 }),
  },
  'no zeroes': {
    greeting: () =>
      greeting({
        magic: GREETING_MAGIC,
        optionMagic: OPTION_MAGIC,
        handshakeFlags: HandshakeFlag.fixedNewstyle,
      }),
  },
  'unknown handshake flags': {
    greeting: () => greeting({ magic: GREETING_MAGIC, optionMagic: OPTION_MAGIC, handshakeFlags: 0xffff }),
  },
  oldstyle: { greeting: () => oldstyle(BigInt(MiB), ExportFlag.hasFlags) },
  'oldstyle, large flags': { greeting: () => oldstyle(BigInt(MiB), 0x10001) },
};

function oldstyle(size: bigint, flags: number): Buffer {
  const head = Buffer.alloc(28 + 124);
  head.writeBigUInt64BE(GREETING_MAGIC, 0);
  head.writeBigUInt64BE(OLDSTYLE_MAGIC, 8);
  head.writeBigUInt64BE(size, 16);
  head.writeUInt32BE(flags, 24);
  return head;
}

const structured: Record<string, Script> = {
  'structured: with payload': answering(Option.STRUCTURED_REPLY, () =>
    optionReply(Option.STRUCTURED_REPLY, Reply.ACK, 'x'),
  ),
  'structured: answer to another option': answering(Option.STRUCTURED_REPLY, () =>
    optionReply(Option.LIST, Reply.ACK),
  ),
  'structured: odd reply': answering(Option.STRUCTURED_REPLY, () =>
    optionReply(Option.STRUCTURED_REPLY, Reply.SERVER),
  ),
  'structured: wrong magic': answering(Option.STRUCTURED_REPLY, () => Buffer.alloc(20, 1)),
  'structured: closes': answering(Option.STRUCTURED_REPLY, () => 'close'),
};

const meta = Option.SET_META_CONTEXT;
const metaAck = optionReply(meta, Reply.ACK);
const contexts: Record<string, Script> = {
  'context: none': answering(meta, () => metaAck),
  'context: another': answering(meta, () => Buffer.concat([metaContext(1, 'qemu:x'), metaAck])),
  'context: two': answering(meta, () =>
    Buffer.concat([metaContext(1, 'base:allocation'), metaContext(2, 'base:allocation'), metaAck]),
  ),
  'context: short': answering(meta, () =>
    Buffer.concat([optionReply(meta, Reply.META_CONTEXT, 'abc'), metaAck]),
  ),
  'context: without name': answering(meta, () =>
    Buffer.concat([optionReply(meta, Reply.META_CONTEXT, bytes(0, 0, 0, 1)), metaAck]),
  ),
  'context: odd reply': answering(meta, () => optionReply(meta, Reply.INFO)),
  'context: ack with payload': answering(meta, () => optionReply(meta, Reply.ACK, 'abc')),
};

const go: Record<string, Script> = {
  'go: nothing told': goAnswer(ack),
  'go: fine': goAnswer(exported, ack),
  'go: ack with payload': goAnswer(exported, optionReply(Option.GO, Reply.ACK, 'x')),
  'go: odd reply': goAnswer(exported, optionReply(Option.GO, Reply.SERVER)),
  'go: empty info': goAnswer(optionReply(Option.GO, Reply.INFO), ack),
  'go: short export info': goAnswer(optionReply(Option.GO, Reply.INFO, bytes(0, 0, 1, 2)), ack),
  'go: long export info': goAnswer(optionReply(Option.GO, Reply.INFO, Buffer.alloc(13)), ack),
  'go: short block sizes': goAnswer(
    exported,
    optionReply(Option.GO, Reply.INFO, bytes(0, Info.BLOCK_SIZE, 1)),
    ack,
  ),
  'go: unknown info': goAnswer(exported, optionReply(Option.GO, Reply.INFO, bytes(9, 9, 1)), ack),
  'go: minimum 0': goAnswer(exported, infoBlockSize(0, 4096, 65536), ack),
  'go: minimum 3': goAnswer(exported, infoBlockSize(3, 4096, 65536), ack),
  'go: minimum large': goAnswer(exported, infoBlockSize(131072, 131072, 1048576), ack),
  'go: preferred below minimum': goAnswer(exported, infoBlockSize(4096, 512, 65536), ack),
  'go: preferred 5000': goAnswer(exported, infoBlockSize(512, 5000, 65536), ack),
  'go: maximum below minimum': goAnswer(exported, infoBlockSize(4096, 4096, 512), ack),
  'go: maximum below preferred': goAnswer(exported, infoBlockSize(512, 65536, 4096), ack),
  'go: maximum not aligned': goAnswer(exported, infoBlockSize(512, 4096, 65537), ack),
  'go: maximum largest': goAnswer(exported, infoBlockSize(1, 4096, 0xffffffff), ack),
  'go: size not of blocks': goAnswer(
    infoExport(BigInt(MiB + 512), ALL_FLAGS),
    infoBlockSize(4096, 4096, 65536),
    ack,
  ),
  'go: odd size': goAnswer(infoExport(1000n, ALL_FLAGS), ack),
  'go: size 0': goAnswer(infoExport(0n, ALL_FLAGS), ack),
  'go: no flags': goAnswer(infoExport(BigInt(MiB), 0), ack),
  'go: read-only': goAnswer(infoExport(BigInt(MiB), ALL_FLAGS | ExportFlag.readOnly), ack),
  'go: closes': answering(Option.GO, () => 'close'),
};

const list = Option.LIST;

function named(name: string): Buffer {
  const text = Buffer.from(name);
  return optionReply(
    list,
    Reply.SERVER,
    Buffer.concat([Layouts.serverReply.encode({ nameLength: text.length }), text]),
  );
}

/** Without GO the list is asked for, then the export by name. */
function oldServer(listAnswer: Buffer | undefined, entry: Buffer | 'close'): Script {
  return {
    option: (option) => {
      if (option === Option.GO) return optionReply(option, Reply.ERR_UNSUP);
      if (option === list) return listAnswer;
      return option === Option.EXPORT_NAME ? entry : undefined;
    },
  };
}

const entry = Layouts.exportNameReply.encode({ sizeBytes: BigInt(MiB), flags: ExportFlag.hasFlags });
const listEnd = optionReply(list, Reply.ACK);
const byName: Record<string, Script> = {
  'by name: no list': oldServer(undefined, entry),
  'by name: list refused': oldServer(optionReply(list, Reply.ERR_POLICY), entry),
  'by name: empty list': oldServer(listEnd, entry),
  'by name: listed': oldServer(Buffer.concat([named('a'), named(''), listEnd]), entry),
  'by name: not listed': oldServer(Buffer.concat([named('a'), named('b'), listEnd]), entry),
  'by name: short list entry': oldServer(
    Buffer.concat([optionReply(list, Reply.SERVER, 'ab'), listEnd]),
    entry,
  ),
  'by name: wrong length in list': oldServer(
    Buffer.concat([optionReply(list, Reply.SERVER, bytes(0, 0, 0, 9, 65)), listEnd]),
    entry,
  ),
  'by name: odd list reply': oldServer(optionReply(list, Reply.INFO), entry),
  'by name: closes': oldServer(listEnd, 'close'),
  'by name: half an answer': oldServer(listEnd, entry.subarray(0, 4)),
};

export const handshakeScenarios: Readonly<Record<string, Script>> = {
  ...greetings,
  ...structured,
  ...errorsOf(Option.STRUCTURED_REPLY),
  ...contexts,
  ...errorsOf(meta),
  ...go,
  ...errorsOf(Option.GO),
  ...byName,
};
