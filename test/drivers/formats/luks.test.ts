/**
 * luks: images of cryptsetup in both versions, key files of any bytes, detached headers, random guests against a model,
 * damaged headers. Ciphers and key slots of version 1 beside the original are in ../crypto.test.ts and luks-amend.test.ts.
 */

import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { deriveArgon2, derivePortably } from '../../../src/aio/libraries/argon2.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { BlockError } from '../../../src/errors/error.ts';
import { requirePeer } from '../../peers/requires.ts';
import { peer, scratch, testLayer } from '../qcow2/open-layer.ts';
import { createRandom } from '../qcow2/random.ts';
import { cryptsetup, emptyFile, fillVolume, readVolume, volumeKey } from './luks-tools.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const KIB = 1024;
const MIB = 1024 * KIB;
const FEW = ['--pbkdf-force-iterations', '1000'];
const PBKDF2 = ['--sector-size', '512', '--pbkdf', 'pbkdf2', ...FEW];
const LARGE = ['--sector-size', '4096', '--pbkdf', 'pbkdf2', ...FEW];
const argon = (kind: string) => [
  ...['--sector-size', '512'],
  '--pbkdf',
  kind,
  '--pbkdf-memory',
  '64',
  '--pbkdf-force-iterations',
  '4',
];
/** Bytes that are no text, among them line ends and zeroes. */
const KEY_FILE = Buffer.from([0xff, 0x0a, 0x00, 0x80, 0xc3, 0x28, 0x0d, 0x00]);
const WORDS = Buffer.from('hunter2');

interface Case {
  readonly args: readonly string[];
  readonly passphrase?: Buffer;
  readonly offset: number;
  readonly sectorBytes?: number;
  readonly cipher?: string;
}

const CASES: Readonly<Record<string, Case>> = {
  'version 1': { args: ['--type', 'luks1', ...FEW], offset: 2 * MIB },
  'version 1, Whirlpool': { args: ['--type', 'luks1', ...FEW, '-h', 'whirlpool'], offset: 2 * MIB },
  'version 1, a key file': { args: ['--type', 'luks1', ...FEW], passphrase: KEY_FILE, offset: 2 * MIB },
  'version 1, ECB': {
    args: ['--type', 'luks1', ...FEW, '-c', 'aes-ecb', '-s', '256'],
    offset: 2 * MIB,
    cipher: 'aes-ecb-plain',
  },
  'version 1, ESSIV, a payload of its own alignment': {
    args: ['--type', 'luks1', ...FEW, '-c', 'aes-cbc-essiv:sha256', '-s', '256', '--align-payload', '8192'],
    offset: 4 * MIB,
    cipher: 'aes-cbc-essiv:sha256',
  },
  'version 2, a larger header, another cipher for the slots': {
    args: [
      ...['--type', 'luks2', ...PBKDF2, '--luks2-metadata-size', '1m', '--luks2-keyslots-size', '8m'],
      ...['--keyslot-cipher', 'aes-cbc-plain64', '--keyslot-key-size', '256', '--label', 'Ümläut'],
    ],
    offset: 10 * MIB,
  },
  'version 2, sectors of 2 KiB, argon2id with odd numbers': {
    args: [
      ...['--type', 'luks2', '--sector-size', '2048', '--pbkdf', 'argon2id', '--pbkdf-memory', '1003'],
      ...['--pbkdf-parallel', '3', '--pbkdf-force-iterations', '5'],
    ],
    offset: 16 * MIB,
    sectorBytes: 2048,
  },
  'version 2, PBKDF2': { args: ['--type', 'luks2', ...PBKDF2], offset: 16 * MIB },
  'version 2, argon2id': { args: ['--type', 'luks2', ...argon('argon2id')], offset: 16 * MIB },
  'version 2, argon2i': { args: ['--type', 'luks2', ...argon('argon2i')], offset: 16 * MIB },
  'version 2, sectors of 4 KiB, a key file': {
    args: ['--type', 'luks2', ...LARGE],
    passphrase: KEY_FILE,
    offset: 16 * MIB,
    sectorBytes: 4096,
  },
  'version 2, content elsewhere': {
    args: ['--type', 'luks2', ...PBKDF2, '--offset', String((20 * MIB) / 512)],
    offset: 20 * MIB,
  },
};

describe('volumes of cryptsetup', () => {
  for (const [name, each] of Object.entries(CASES)) {
    const { args, passphrase = WORDS, offset, sectorBytes = 512, cipher = 'aes-xts-plain64' } = each;
    test(name, async (context) => {
      requirePeer(context, 'cryptsetup');
      const file = emptyFile(folder, 'theirs.luks', 22 * MIB);
      cryptsetup(['luksFormat', ...args, '--key-file', '-', file], passphrase);
      const content = randomBytes(256 * KIB);
      const key = volumeKey(folder, file, passphrase);
      fillVolume(file, key, { offset, cipher, sectorBytes }, content);
      expect((await readVolume(file, passphrase, content.length)).equals(content)).toBe(true);
      await expect(readVolume(file, Buffer.from('wrong'), 512)).rejects.toThrow(
        'Invalid password, cannot unlock any keyslot',
      );
    });
  }

  test('of version 2 with a damaged first header', async (context) => {
    requirePeer(context, 'cryptsetup');
    const file = emptyFile(folder, 'damaged.luks', 20 * MIB);
    cryptsetup(['luksFormat', '--type', 'luks2', ...PBKDF2, '--key-file', '-', file], WORDS);
    const image = readFileSync(file);
    image[4200] = image[4200]! ^ 1;
    writeFileSync(file, image);
    expect(await readVolume(file, WORDS, 512)).toHaveLength(512);
    image[0x4000 + 4200] = image[0x4000 + 4200]! ^ 1;
    writeFileSync(file, image);
    await expect(readVolume(file, WORDS, 512)).rejects.toThrow('LUKS2 header: the checksum is wrong');
  });

  test('of version 2 whose first header is gone', async (context) => {
    requirePeer(context, 'cryptsetup');
    const file = emptyFile(folder, 'gone.luks', 20 * MIB);
    cryptsetup(['luksFormat', '--type', 'luks2', ...PBKDF2, '--key-file', '-', file], WORDS);
    const image = readFileSync(file);
    image.fill(0, 0, 4096);
    writeFileSync(file, image);
    expect(await readVolume(file, WORDS, 512)).toHaveLength(512);
    image[0x4000 + 4200] = image[0x4000 + 4200]! ^ 1;
    writeFileSync(file, image);
    await expect(readVolume(file, WORDS, 512)).rejects.toThrow('Volume is not in LUKS format');
  });

  test('of version 2 with key slots that nobody here can open, or that open other things', async (context) => {
    requirePeer(context, 'cryptsetup');
    const file = emptyFile(folder, 'slots.luks', 20 * MIB);
    const key = path.join(folder, 'other-key');
    writeFileSync(key, WORDS);
    writeFileSync(path.join(folder, 'free-key'), randomBytes(32));
    const first = ['luksFormat', '--type', 'luks2', ...PBKDF2, '--key-slot', '3', '--key-file', '-', file];
    cryptsetup(first, Buffer.from('other'));
    writeFileSync(path.join(folder, 'old-key'), 'other');
    const add = ['luksAddKey', '--key-file', path.join(folder, 'old-key')];
    cryptsetup([...add, ...PBKDF2.slice(2), '--key-slot', '7', file, key], Buffer.alloc(0));
    const free = ['--unbound', '--key-size', '256', '--volume-key-file', path.join(folder, 'free-key')];
    cryptsetup(['luksAddKey', ...free, ...PBKDF2.slice(2), '--key-slot', '1', file], WORDS);
    cryptsetup(['token', 'add', '--key-description', 'some:key', file], Buffer.alloc(0));
    expect(await readVolume(file, WORDS, 512)).toHaveLength(512);
    // A function to come in one slot leaves the others as they are; nothing but it is an error that names it.
    const changeJson = (from: string, to: string): void => {
      const image = readFileSync(file);
      for (const at of [0, 0x4000]) {
        const json = image.toString('latin1', at + 4096, at + 0x4000);
        const slot = json.indexOf('"3":{"type":"luks2"');
        const place = json.indexOf(from, slot);
        expect(slot >= 0 && place >= 0).toBe(true);
        image.write(to, at + 4096 + place, 'latin1');
        image.fill(0, at + 448, at + 512);
        createHash('sha256')
          .update(image.subarray(at, at + 0x4000))
          .digest()
          .copy(image, at + 448);
      }
      writeFileSync(file, image);
    };
    changeJson('"type":"pbkdf2"', '"type":"balloo"');
    expect(await readVolume(file, WORDS, 512)).toHaveLength(512);
    await expect(readVolume(file, Buffer.from('other'), 512)).rejects.toThrow(
      'LUKS2 header: key derivation balloo is not supported',
    );
  });

  for (const type of ['luks1', 'luks2']) {
    test(`with a detached header, ${type}`, async (context) => {
      requirePeer(context, 'cryptsetup');
      const file = emptyFile(folder, 'content.luks', MIB);
      const header = path.join(folder, 'header.luks');
      rmSync(header, { force: true });
      const pbkdf = type === 'luks2' ? PBKDF2 : FEW;
      cryptsetup(
        ['luksFormat', '--type', type, ...pbkdf, '--header', header, '--key-file', '-', file],
        WORDS,
      );
      const content = randomBytes(MIB);
      const key = volumeKey(folder, header, WORDS);
      fillVolume(file, key, { offset: 0, cipher: 'aes-xts-plain64', sectorBytes: 512 }, content);
      const read = await readVolume(file, WORDS, MIB, { header: { driver: 'file', filename: header } });
      expect(read.equals(content)).toBe(true);
    });
  }
});

describe('Argon2', () => {
  // RFC 9106 has vectors with a secret and associated data only; these are of the reference implementation's test.c.
  const vectors = [
    ['argon2i', 'c1628832147d9720c5bd1cfd61367078729f6dfb6f8fea9ff98158e0d7816ed0'],
    ['argon2id', '09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7'],
  ] as const;
  for (const [variant, expected] of vectors) {
    test(variant, async () => {
      const parameters = { variant, passes: 2, memoryKib: 65536, lanes: 1 };
      for (const derive of [deriveArgon2, derivePortably]) {
        const key = await derive(parameters, Buffer.from('password'), Buffer.from('somesalt'), 32);
        expect(key.toString('hex')).toBe(expected);
      }
    });
  }
});

test('damaged and cut headers of version 2: an error, and soon', async (context) => {
  requirePeer(context, 'cryptsetup');
  const file = emptyFile(folder, 'fuzz.luks', 17 * MIB);
  cryptsetup(['luksFormat', '--type', 'luks2', ...PBKDF2, '--key-file', '-', file], WORDS);
  const whole = readFileSync(file).subarray(0, 64 * KIB);
  const random = createRandom(Number(process.env.FUZZ_SEED ?? 1));
  const { readLuksInfoAny } = await import('../../../src/drivers/crypto/luks2/open.ts');
  for (let run = 0; run < Number(process.env.FUZZ_RUNS ?? 300); run++) {
    const bytes = Buffer.from(whole);
    // The second header is out of the way, the first one's checksum is left to be wrong in some of the runs only.
    bytes.fill(0, 0x4000, 0x8000);
    for (let i = random.below(4); i >= 0; i--) bytes[random.below(0x4000)] = random.below(256);
    const end = random.below(4) === 0 ? random.below(bytes.length) : bytes.length;
    const read = async (offset: number, length: number): Promise<Buffer> => {
      const data = Buffer.alloc(length);
      bytes.subarray(Math.min(offset, end), Math.min(offset + length, end)).copy(data);
      return data;
    };
    await readLuksInfoAny(read, false).catch((error: unknown) => {
      if (!(error instanceof BlockError)) throw error;
    });
  }
});

const SHAPES = [
  'cipher-alg=aes-256',
  'cipher-alg=aes-192',
  'cipher-alg=serpent-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256',
  'cipher-alg=twofish-128,cipher-mode=ctr',
  'cipher-alg=cast5-128,cipher-mode=cbc',
];

for (const shape of SHAPES) {
  test(`a random guest on an image of ours, read by the original: ${shape}`, async (context) => {
    requirePeer(context, 'qemu-img');
    const file = path.join(folder, 'guest.luks');
    const raw = path.join(folder, 'guest.raw');
    const model = Buffer.alloc(512 * KIB);
    const random = createRandom(Number(process.env.MODEL_SEED ?? 1));
    const values = Object.fromEntries(shape.split(',').map((pair) => pair.split('=') as [string, string]));
    for (let round = 0; round < 3; round++) {
      const { layer, close } = testLayer('hunter2');
      try {
        if (round === 0) {
          const more = { 'key-secret': 's', 'iter-time': '1', size: String(model.length) };
          const { creation } = (await layer.driver('luks'))!;
          await creation!.createFile(layer, file, { ...values, ...more }, { update: () => undefined });
        }
        const node = await openFromOptions(layer, {
          driver: 'luks',
          'key-secret': 's',
          file: { driver: 'file', filename: file },
        });
        if (round === 0) await writeAll(node, model);
        for (let step = 0; step < 10; step++) {
          await Promise.all(
            Array.from({ length: 4 }, async (_, i) => {
              // Apart from each other, at odd places.
              const from = i * 128 * KIB + random.below(60 * KIB);
              const part = allocateIoMemory(1 + random.below(60 * KIB));
              part.buf.fill(random.below(256));
              part.buf.copy(model, from);
              await wrapped.pwritev(node, from, part.buf.length, vectorOf(part), 0);
            }),
          );
        }
        const memory = allocateIoMemory(model.length);
        await wrapped.preadv(node, 0, model.length, vectorOf(memory), 0);
        expect(memory.buf.equals(model)).toBe(true);
      } finally {
        await close();
      }
    }
    const source = `driver=luks,key-secret=s,file.filename=${file}`;
    peer(
      'qemu-img',
      'convert',
      '--object',
      'secret,id=s,data=hunter2',
      '--image-opts',
      source,
      '-O',
      'raw',
      raw,
    );
    expect(readFileSync(raw).equals(model)).toBe(true);
  });
}

async function writeAll(node: BlockNode, content: Buffer): Promise<void> {
  const memory = allocateIoMemory(content.length);
  content.copy(memory.buf);
  await wrapped.pwritev(node, 0, content.length, vectorOf(memory), 0);
}
