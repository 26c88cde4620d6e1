/** Ways to damage the bitmaps of a qcow2 image which has two: the first one's table and bits are in the file. */

export type Damage = (image: Buffer) => void;

/** Where the parts are. */
function layout(image: Buffer): { extension: number; directory: number; table: number; bits: number } {
  const extension = image.indexOf(Buffer.from('2385287500000018', 'hex'));
  const directory = Number(image.readBigUInt64BE(extension + 24));
  const table = Number(image.readBigUInt64BE(directory));
  return { extension, directory, table, bits: Number(image.readBigUInt64BE(table)) };
}

type Part = keyof ReturnType<typeof layout>;

function u64(part: Part, at: number, value: bigint | ((old: bigint) => bigint)): Damage {
  return (image) => {
    const offset = layout(image)[part] + at;
    const old = image.readBigUInt64BE(offset);
    image.writeBigUInt64BE(BigInt.asUintN(64, typeof value === 'bigint' ? value : value(old)), offset);
  };
}

function u32(part: Part, at: number, value: number): Damage {
  return (image) => void image.writeUInt32BE(value, layout(image)[part] + at);
}

function u16(part: Part, at: number, value: number): Damage {
  return (image) => void image.writeUInt16BE(value, layout(image)[part] + at);
}

function u8(part: Part, at: number, value: number): Damage {
  return (image) => void image.writeUInt8(value, layout(image)[part] + at);
}

function both(first: Damage, second: Damage): Damage {
  return (image) => {
    first(image);
    second(image);
  };
}

const inUse = u32('directory', 12, 3);

export const bitmapDamages: Readonly<Record<string, Damage>> = {
  'none at all': () => undefined,
  'autoclear bit off': (image) => void image.writeBigUInt64BE(0n, 88),
  'count 0': u32('extension', 8, 0),
  'count too small': u32('extension', 8, 1),
  'count too large': u32('extension', 8, 3),
  'count beyond the limit': u32('extension', 8, 65_536),
  'reserved field': u32('extension', 12, 1),
  'extension too short': u32('extension', 4, 16),
  'directory of 0 bytes': u64('extension', 16, 0n),
  'directory of 8 bytes': u64('extension', 16, 8n),
  'directory too long': u64('extension', 16, (old) => old + 8n),
  'directory cut': u64('extension', 16, (old) => old / 2n),
  'directory beyond the limit': u64('extension', 16, 1n << 27n),
  'directory of 2^63 bytes': u64('extension', 16, 1n << 63n),
  'directory at 0': u64('extension', 24, 0n),
  'directory unaligned': u64('extension', 24, (old) => old + 8n),
  'directory at the end of the world': u64('extension', 24, -65_536n),
  'table unaligned': u64('directory', 0, (old) => old + 8n),
  'table behind the end': u64('directory', 0, 1n << 40n),
  'table at 0': u64('directory', 0, 0n),
  'table empty': u32('directory', 8, 0),
  'table too large': u32('directory', 8, 2),
  'table far too large': u32('directory', 8, 0x8000000),
  'table of 2^32 entries': u32('directory', 8, 0xffffffff),
  'unknown flag': u32('directory', 12, 8),
  'highest flag': u32('directory', 12, 0x80000000),
  'extra data flag': u32('directory', 12, 6),
  'in use': inUse,
  'type 0': u8('directory', 16, 0),
  'type 2': u8('directory', 16, 2),
  ...Object.fromEntries(
    [8, 9, 32, 63, 255].map((bits) => [`granularity 2^${bits}`, u8('directory', 17, bits)]),
  ),
  // One bit is left, and what is stored behind it the original takes for part of it.
  'granularity 2^31': both(u64('table', 0, 0n), u8('directory', 17, 31)),
  'name too long': u16('directory', 18, 1024),
  'name of 65535 bytes': u16('directory', 18, 65_535),
  'name with a zero behind': u16('directory', 18, 2),
  'extra data': u32('directory', 20, 8),
  'extra data of 4 GiB': u32('directory', 20, 0xffffffff),
  'name that is no UTF-8': u8('directory', 24, 0xff),
  'two of one name': (image) => {
    const { directory } = layout(image);
    image.copy(image, directory + 32, directory, directory + 32);
  },
  'table entry with a reserved bit': u64('table', 0, (old) => old | 2n),
  'table entry with reserved high bits': u64('table', 0, 1n << 62n),
  'table entry: all set': u64('table', 0, 1n),
  'table entry: all clear': u64('table', 0, 0n),
  'table entry: all set and an offset': u64('table', 0, (old) => old | 1n),
  'table entry unaligned': u64('table', 0, (old) => old + 512n),
  'table entry behind the end': u64('table', 0, 1n << 40n),
  'bits behind the end of the disk': (image) =>
    void image.fill(0xff, layout(image).bits, layout(image).bits + 65_536),
  'in use, table entry unaligned': both(
    inUse,
    u64('table', 0, (old) => old + 512n),
  ),
  'in use, table too large': both(inUse, u32('directory', 8, 2)),
  'in use, too fine for its table': both(inUse, u8('directory', 17, 9)),
};
