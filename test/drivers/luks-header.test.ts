/** LUKS headers that break the rules: the messages of QEMU, and for random damage nothing worse than a message. */

import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createLuks, openLuks, readLuksInfo } from '../../src/drivers/crypto/luks.ts';
import {
  encodeLuksHeader,
  LUKS_HEADER_BYTES,
  parseLuksHeader,
} from '../../src/drivers/crypto/luks-header.ts';
import { BlockError } from '../../src/errors/error.ts';
import { requirePeer } from '../peers/requires.ts';
import { PASSPHRASE, qemuInfo, qemuReads, readerOf } from './luks-images.ts';

const dir = mkdtempSync(path.join(tmpdir(), 'qblockd-luks-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const passphrase = Buffer.from(PASSPHRASE);

let base: Buffer;
beforeAll(async () => {
  const { header, payloadOffset } = await createLuks({ 'iter-time': 0 }, passphrase);
  base = Buffer.concat([header, Buffer.alloc(payloadOffset + 4096 - header.length)]);
});

type Change = (header: Buffer) => void;

const number =
  (offset: number, value: number): Change =>
  (header) => {
    header.writeUInt32BE(value >>> 0, offset);
  };

const text =
  (offset: number, value: string): Change =>
  (header) => {
    header.fill(0, offset, offset + 32);
    header.write(value, offset, 'latin1');
  };

/** Fills the field to its last byte. */
const endless =
  (offset: number): Change =>
  (header) => {
    header.fill(0x41, offset, offset + 32);
  };

const both =
  (...changes: readonly Change[]): Change =>
  (header) => {
    for (const change of changes) change(header);
  };

const name = (value: string) => text(8, value);
const mode = (value: string) => text(40, value);
const hash = (value: string) => text(72, value);
const payload = (sectors: number) => number(104, sectors);
const keyBytes = (value: number) => number(108, value);
/** A field of a slot: 0 state, 4 iterations, 40 offset, 44 stripes. */
const slot = (index: number, field: number, value: number) => number(208 + 48 * index + field, value);

const CHANGES: Readonly<Record<string, Change>> = {
  nothing: () => {},
  magic: number(0, 0),
  'version 2': (header) => header.writeUInt16BE(2, 6),
  'version 0': (header) => header.writeUInt16BE(0, 6),
  'name without end': endless(8),
  'mode without end': endless(40),
  'hash without end': endless(72),
  'two names without end': both(endless(40), endless(72)),
  'cipher foo': name('foo'),
  'cipher aes-256': name('aes-256'),
  'cipher des': name('des'),
  'no cipher': name(''),
  'cipher serpent': name('serpent'),
  'mode without generator': mode('xts'),
  'empty generator': mode('xts-'),
  'generator foo': mode('xts-foo'),
  'mode foo': mode('foo-plain'),
  'no mode': mode(''),
  'hash of a plain generator': mode('xts-plain64:sha1'),
  'unknown hash of a plain generator': mode('xts-plain64:foo'),
  'essiv without hash': mode('xts-essiv'),
  'essiv with a hash of no key length': mode('xts-essiv:sha1'),
  'essiv with an unknown hash': mode('xts-essiv:foo'),
  'essiv with an empty hash': mode('xts-essiv:'),
  'essiv of serpent': both(name('serpent'), mode('xts-essiv:sha1')),
  'essiv of twofish': both(name('twofish'), mode('xts-essiv:sha1')),
  'essiv of cast5': both(name('cast5'), mode('cbc-essiv:sha1'), keyBytes(16)),
  'two dashes': mode('xts-plain64-x'),
  'colon in the mode': mode('xts:sha256-plain'),
  'two colons': mode('xts-plain:sha256:sha1'),
  'cbc with a key for xts': mode('cbc-plain'),
  'hash foo': hash('foo'),
  'no hash': hash(''),
  'hash in capitals': hash('SHA256'),
  'hash of an object’s method': hash('toString'),
  'unknown mode, hash and generator': mode('foo-foo:foo'),
  'unknown mode and generator': mode('foo-foo'),
  'unknown generator and cipher': both(mode('xts-foo'), name('foo')),
  'unknown generator and hash': both(mode('xts-foo'), hash('foo')),
  'unknown hash and cipher': both(hash('foo'), name('foo')),
  'essiv without hash, unknown hash': both(mode('xts-essiv'), hash('foo')),
  'payload at 0': payload(0),
  'payload at 8': payload(8),
  'payload at 512': payload(512),
  'digest iterations 0': number(164, 0),
  ...Object.fromEntries(
    [0, 1, 16, 24, 32, 48, 63, 65, 128, 0x7fffffff, 0xffffffff].map((bytes) => [
      `key of ${bytes} bytes`,
      keyBytes(bytes),
    ]),
  ),
  'uuid without end': (header) => header.fill(0x41, 168, 208),
  'slot 0: state': slot(0, 0, 5),
  'slot 3: state': slot(3, 0, 5),
  'slot 0: not active': slot(0, 0, 0xdead),
  'slot 0: no iterations': slot(0, 4, 0),
  'slot 1: active, no iterations': slot(1, 0, 0xac71f3),
  // Key material is taken where it fits, as cryptsetup 1.0 put it; the original wants it at whole 4 KiB.
  ...Object.fromEntries([0, 1, 16, 4040].map((at) => [`slot 0 at ${at}`, slot(0, 40, at)])),
  ...Object.fromEntries([8, 9, 507, 1016].map((at) => [`slot 1 at ${at}`, slot(1, 40, at)])),
  ...Object.fromEntries([3536, 4040].map((at) => [`slot 7 at ${at}`, slot(7, 40, at)])),
  ...Object.fromEntries([0, 1, 3999, 0xffffffff].map((n) => [`slot 0: ${n} stripes`, slot(0, 44, n)])),
  'slot 1: no stripes': slot(1, 44, 0),
  'slot 0: stripes and state': both(slot(0, 44, 0), slot(0, 0, 5)),
  'slot 0: state and iterations': both(slot(0, 0, 5), slot(0, 4, 0)),
  'slot 0: iterations and offset': both(slot(0, 4, 0), slot(0, 40, 1)),
  'slot 0: overlap, slot 1: state': both(slot(1, 40, 10), slot(1, 0, 1)),
  'overlap and unknown hash': both(slot(2, 40, 10), hash('foo')),
};

/** What we say of a volume: its information, or the message. */
async function ourInfo(volume: Buffer): Promise<unknown> {
  try {
    const { 'detached-header': _, ...info } = await readLuksInfo(readerOf(volume));
    return info;
  } catch (error) {
    return error instanceof BlockError ? error.message : error;
  }
}

describe('information about damaged headers', () => {
  test.for(Object.entries(CHANGES))('%s', async ([, change], context) => {
    requirePeer(context, 'qemu-img');
    const volume = Buffer.from(base);
    change(volume);
    expect(await ourInfo(volume)).toEqual(qemuInfo(dir, volume));
  });
});

describe('opening damaged volumes', () => {
  const OPENED = ['key of 32 bytes', 'slot 0: not active', 'uuid without end', 'hash of a plain generator'];
  const changes: [string, Change][] = [
    ['another hash', hash('sha1')],
    ['other digest', number(112, 1)],
    ['other digest iterations', number(164, 1)],
    ['key material', number(5000, 1)],
    ['key of 33 bytes', keyBytes(33)],
    ...OPENED.map((title): [string, Change] => [title, CHANGES[title] ?? (() => {})]),
  ];
  test.for(changes)('%s', async ([, change], context) => {
    requirePeer(context, 'qemu-img');
    const volume = Buffer.from(base);
    change(volume);
    const theirs = qemuReads(dir, volume, 's');
    const ours = await openLuks(readerOf(volume), passphrase).catch((error: Error) => error.message);
    if (typeof theirs === 'string') expect(ours).toBe(theirs);
    else expect(ours).toMatchObject({ payloadOffset: 4040 * 512 });
  });

  test('more iterations than can be done are refused at once', async () => {
    const volume = Buffer.from(base);
    slot(0, 4, 0xffffffff)(volume);
    await expect(openLuks(readerOf(volume), passphrase)).rejects.toThrow(
      'Keyslot 0 iteration count 4294967295 is larger than 2147483647',
    );
  });

  test('a volume that ends too early: the reader’s error comes out', async () => {
    const read = async (offset: number, bytes: number): Promise<Buffer> => {
      if (offset + bytes > 100_000) throw new BlockError('outside');
      return base.subarray(offset, offset + bytes);
    };
    await expect(openLuks(read, passphrase)).rejects.toThrow('outside');
  });
});

test('what is read is what was written', () => {
  const header = base.subarray(0, LUKS_HEADER_BYTES);
  expect(encodeLuksHeader(parseLuksHeader(header)).equals(header)).toBe(true);
});

test('random damage gives a message or a volume', async () => {
  const damage = fc.array(
    fc.tuple(
      fc.nat(LUKS_HEADER_BYTES - 4),
      fc.oneof(fc.nat(0xff), fc.nat(0xffffffff)),
      fc.constantFrom(1, 2, 4),
    ),
    { minLength: 1, maxLength: 4 },
  );
  await fc.assert(
    fc.asyncProperty(damage, async (changes) => {
      const volume = Buffer.from(base);
      for (const [at, value, bytes] of changes) volume.writeUIntBE(value % 256 ** bytes, at, bytes);
      // Time is bounded by what the header says, so say little.
      for (let i = 0; i < 8; i++) volume.writeUInt16BE(0, 208 + 48 * i + 4);
      volume.writeUInt16BE(0, 164);
      const result: unknown = await openLuks(readerOf(volume), passphrase).catch((error: unknown) => error);
      if (result instanceof Error) expect(result).toBeInstanceOf(BlockError);
    }),
    { numRuns: 300 },
  );
  const noise = await openLuks(readerOf(randomBytes(8192)), passphrase).catch((error: unknown) => error);
  expect(noise).toMatchObject({ message: 'Volume is not in LUKS format' });
});
