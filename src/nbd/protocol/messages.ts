/**
 * The NBD protocol as one table: numbers, names and byte layouts.
 *
 * Source of fact: doc/proto.md of the NBD project and its branch extension-ext-header (64-bit requests). Everything
 * on the wire is big-endian. Readers and writers are derived from the layouts; code on the request path takes the
 * field positions (`Layout.x.at.y`) and sizes (`Layout.x.bytes`) instead and reads the bytes itself.
 *
 * Here: facts both sides of a connection share. Not here: what a server or client does with them.
 */

// ---- numbers -------------------------------------------------------------------------------------------------

/** First eight bytes of a server's greeting: "NBDMAGIC". */
export const GREETING_MAGIC = 0x4e42444d41474943n;
/** Second eight bytes of a newstyle greeting, and the start of every option: "IHAVEOPT". */
export const OPTION_MAGIC = 0x49484156454f5054n;
/** The same of an oldstyle greeting. */
export const OLDSTYLE_MAGIC = 0x00420281861253n;
export const OPTION_REPLY_MAGIC = 0x3e889045565a9n;
export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a278c;

/** Longest string (export name, description, context name, error text) in bytes. */
export const STRING_MAX_BYTES = 4096;

/** Bits of the server's handshake flags. */
export const HandshakeFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** Bits of the client's answer to them. */
export const ClientFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;

export const Option = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

/** Option replies; those with bit 31 set are errors, whose payload is a text for humans. */
export const Reply = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x80000001,
  ERR_POLICY: 0x80000002,
  ERR_INVALID: 0x80000003,
  ERR_PLATFORM: 0x80000004,
  ERR_TLS_REQD: 0x80000005,
  ERR_UNKNOWN: 0x80000006,
  ERR_SHUTDOWN: 0x80000007,
  ERR_BLOCK_SIZE_REQD: 0x80000008,
  ERR_TOO_BIG: 0x80000009,
  ERR_EXT_HEADER_REQD: 0x8000000a,
} as const;

/** Kinds of NBD_REP_INFO payloads. */
export const Info = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

/** Bits of the transmission flags of an export. */
export const ExportFlag = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  rotational: 1 << 4,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
  sendResize: 1 << 9,
  sendCache: 1 << 10,
  sendFastZero: 1 << 11,
  blockStatusPayload: 1 << 12,
} as const;

export const Command = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

/** Bits of a request's flags. */
export const CommandFlag = {
  fua: 1 << 0,
  noHole: 1 << 1,
  df: 1 << 2,
  reqOne: 1 << 3,
  fastZero: 1 << 4,
  payloadLength: 1 << 5,
} as const;

/** Bits of a reply chunk's flags. */
export const ChunkFlag = { done: 1 } as const;

/** Types of reply chunks; those with bit 15 set are errors. */
export const Chunk = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;

/** Error numbers of the protocol. They agree with Linux where both have the error. */
export const NbdError = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** Bits of an extent in the context base:allocation. */
export const BaseAllocation = { hole: 1, zero: 2 } as const;

/** Value of an extent in a context qemu:dirty-bitmap:NAME; clean ones are 0. */
export const BITMAP_DIRTY = 1;

/** Values of an extent in the context qemu:allocation-depth. */
export const AllocationDepth = { unallocated: 0, local: 1, backing: 2 } as const;

// ---- layouts -------------------------------------------------------------------------------------------------

type FieldType = 'u16' | 'u32' | 'u64';
type Fields = Readonly<Record<string, FieldType>>;
/** 64-bit fields are bigints here: the request path, which cannot afford them, splits them itself. */
type Value<T extends FieldType> = T extends 'u64' ? bigint : number;

export type LayoutValues<F extends Fields> = { -readonly [K in keyof F]: Value<F[K]> };

export interface Layout<F extends Fields> {
  readonly bytes: number;
  /** Byte position of each field. */
  readonly at: { readonly [K in keyof F]: number };
  read(buf: Buffer, start?: number): LayoutValues<F>;
  /** Writes all fields at `start`; the values must fit their fields. */
  write(buf: Buffer, values: LayoutValues<F>, start?: number): void;
  /** A buffer of exactly this layout, followed by `payload`. */
  encode(values: LayoutValues<F>, ...payload: readonly Buffer[]): Buffer;
}

const FIELD_BYTES = { u16: 2, u32: 4, u64: 8 } as const;

function readField(buf: Buffer, type: FieldType, position: number): number | bigint {
  if (type === 'u16') return buf.readUInt16BE(position);
  if (type === 'u32') return buf.readUInt32BE(position);
  return buf.readBigUInt64BE(position);
}

function writeField(buf: Buffer, type: FieldType, position: number, value: number | bigint): void {
  if (type === 'u16') buf.writeUInt16BE(Number(value), position);
  else if (type === 'u32') buf.writeUInt32BE(Number(value), position);
  else buf.writeBigUInt64BE(BigInt(value), position);
}

/** Fields in wire order, without padding. */
function layout<const F extends Fields>(fields: F): Layout<F> {
  const names = Object.keys(fields);
  const at: Record<string, number> = {};
  let bytes = 0;
  for (const name of names) {
    at[name] = bytes;
    bytes += FIELD_BYTES[fields[name] as FieldType];
  }
  const write = (buf: Buffer, values: LayoutValues<F>, start = 0): void => {
    for (const name of names) {
      writeField(
        buf,
        fields[name] as FieldType,
        start + (at[name] as number),
        values[name] as number | bigint,
      );
    }
  };
  return Object.freeze({
    bytes,
    at: at as Layout<F>['at'],
    read: (buf: Buffer, start = 0) => {
      const values: Record<string, number | bigint> = {};
      for (const name of names)
        values[name] = readField(buf, fields[name] as FieldType, start + (at[name] as number));
      return values as LayoutValues<F>;
    },
    write,
    encode: (values: LayoutValues<F>, ...payload: readonly Buffer[]) => {
      const head = Buffer.alloc(bytes);
      write(head, values);
      return Buffer.concat([head, ...payload]);
    },
  });
}

export const Layouts = {
  // Handshake.
  greeting: layout({ magic: 'u64', optionMagic: 'u64', handshakeFlags: 'u16' }),
  clientFlags: layout({ flags: 'u32' }),
  option: layout({ magic: 'u64', option: 'u32', length: 'u32' }),
  optionReply: layout({ magic: 'u64', option: 'u32', reply: 'u32', length: 'u32' }),
  /** Answer to EXPORT_NAME; 124 zero bytes follow unless both sides agreed on NO_ZEROES. */
  exportNameReply: layout({ sizeBytes: 'u64', flags: 'u16' }),
  /** Payload of NBD_REP_SERVER; the name and a text for humans follow. */
  serverReply: layout({ nameLength: 'u32' }),
  infoExport: layout({ info: 'u16', sizeBytes: 'u64', flags: 'u16' }),
  /** NBD_INFO_NAME and NBD_INFO_DESCRIPTION; the text follows. */
  infoText: layout({ info: 'u16' }),
  infoBlockSize: layout({ info: 'u16', minimum: 'u32', preferred: 'u32', maximumPayload: 'u32' }),
  /** Payload of NBD_REP_META_CONTEXT; the name follows. */
  metaContextReply: layout({ id: 'u32' }),

  // Transmission.
  request: layout({ magic: 'u32', flags: 'u16', type: 'u16', cookie: 'u64', offset: 'u64', length: 'u32' }),
  extendedRequest: layout({
    magic: 'u32',
    flags: 'u16',
    type: 'u16',
    cookie: 'u64',
    offset: 'u64',
    length: 'u64',
  }),
  simpleReply: layout({ magic: 'u32', error: 'u32', cookie: 'u64' }),
  structuredReply: layout({ magic: 'u32', flags: 'u16', type: 'u16', cookie: 'u64', length: 'u32' }),
  extendedReply: layout({
    magic: 'u32',
    flags: 'u16',
    type: 'u16',
    cookie: 'u64',
    offset: 'u64',
    length: 'u64',
  }),

  // Chunk payloads.
  chunkOffsetData: layout({ offset: 'u64' }),
  chunkOffsetHole: layout({ offset: 'u64', length: 'u32' }),
  /** The text follows. */
  chunkError: layout({ error: 'u32', textLength: 'u16' }),
  chunkBlockStatus: layout({ contextId: 'u32' }),
  extent: layout({ length: 'u32', flags: 'u32' }),
  chunkBlockStatusExt: layout({ contextId: 'u32', count: 'u32' }),
  extentExt: layout({ length: 'u64', flags: 'u64' }),
  /** Payload of a BLOCK_STATUS request with a filter; context ids (u32) follow. */
  blockStatusFilter: layout({ length: 'u64' }),
} as const;

/** Zero bytes after exportNameReply unless both sides agreed on NO_ZEROES. */
export const EXPORT_NAME_ZEROES = 124;

/** Name of `value` in one of the tables above, or its number as text: for logs and tests. */
export function nameIn(table: Readonly<Record<string, number>>, value: number): string {
  return Object.entries(table).find(([, number]) => number === value)?.[0] ?? String(value);
}

/** Two halves of a 64-bit number as one; exact up to 2^53. */
export function join64(high: number, low: number): number {
  return high * 0x1_0000_0000 + low;
}
