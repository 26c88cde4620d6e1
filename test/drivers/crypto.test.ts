/**
 * Encryption of sectors against node:crypto's own, and LUKS volumes in both directions: made by QEMU and opened here,
 * made here and opened by QEMU. The header's checks are in luks-header.test.ts, changed slots in luks-amend.test.ts.
 */

import { spawnSync } from 'node:child_process';
import { createCipheriv, createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { openEvpCipher } from '../../src/aio/evp.ts';
import { openBlockCipher } from '../../src/drivers/crypto/block-cipher.ts';
import { openContext, portableContext, xtsContext } from '../../src/drivers/crypto/contexts.ts';
import { openAes } from '../../src/drivers/crypto/legacy-aes.ts';
import { createLuks, luksPayloadOffset, openLuks, readLuksInfo } from '../../src/drivers/crypto/luks.ts';
import { passphraseFromSecret } from '../../src/drivers/crypto/passphrase.ts';
import { iterationsFor } from '../../src/drivers/crypto/pbkdf.ts';
import { withoutNewer } from '../peers/newer-members.ts';
import { requirePeer } from '../peers/requires.ts';
import { PASSPHRASE, qemu, qemuInfo, qemuReads, qemuVolume, readerOf } from './luks-images.ts';

const SECTOR = 512;
const passphrase = Buffer.from(PASSPHRASE);
const dir = mkdtempSync(path.join(tmpdir(), 'qblockd-crypto-'));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const CIPHERS = ['aes-128', 'aes-192', 'aes-256'] as const;
const KEY_BYTES = { 'aes-128': 16, 'aes-192': 24, 'aes-256': 32 } as const;
const MODES = ['xts', 'cbc', 'ctr', 'ecb'] as const;

/** Sectors encrypted one by one, by the textbook. */
function reference(
  name: string,
  key: Buffer,
  data: Buffer,
  ivOf: (sector: number) => Buffer,
  first: number,
): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; at < data.length; at += SECTOR) {
    const iv = name.endsWith('-ecb') ? null : ivOf(first + at / SECTOR);
    const cipher = createCipheriv(name, key, iv).setAutoPadding(false);
    parts.push(cipher.update(data.subarray(at, at + SECTOR)), cipher.final());
  }
  return Buffer.concat(parts);
}

function plain64(sector: number): Buffer {
  const iv = Buffer.alloc(16);
  iv.writeBigUInt64LE(BigInt(sector));
  return iv;
}

describe('sectors', () => {
  const cases = CIPHERS.flatMap((algorithm) => MODES.map((mode) => [algorithm, mode] as const));

  test.each(cases)('%s in mode %s', (algorithm, mode) => {
    if (algorithm === 'aes-192' && mode === 'xts') return; // Not in OpenSSL; compared with QEMU below.
    const key = randomBytes(KEY_BYTES[algorithm] * (mode === 'xts' ? 2 : 1));
    const cipher = openBlockCipher({ algorithm, mode, ivgen: 'plain64', ivgenHash: null }, key);
    // The last one crosses the border of 32 bits.
    for (const first of [0, 1, 12345, 2 ** 32 - 70]) {
      const data = randomBytes(SECTOR * 133);
      const buf = Buffer.from(data);
      cipher.encrypt(buf, first * SECTOR);
      expect(buf.equals(reference(`${algorithm}-${mode}`, key, data, plain64, first))).toBe(true);
      cipher.decrypt(buf, first * SECTOR);
      expect(buf.equals(data)).toBe(true);
      const part = buf.subarray(3 * SECTOR + 0, 5 * SECTOR);
      cipher.encrypt(part, 7 * SECTOR);
      cipher.decrypt(part, 7 * SECTOR);
      expect(buf.equals(data)).toBe(true);
    }
    cipher.close();
  });

  test('plain cuts the sector number to 32 bits', () => {
    const key = randomBytes(64);
    const sectorOf = (ivgen: 'plain' | 'plain64', sector: number): Buffer => {
      const buf = Buffer.alloc(SECTOR);
      const cipher = openBlockCipher({ algorithm: 'aes-256', mode: 'xts', ivgen, ivgenHash: null }, key);
      cipher.encrypt(buf, sector * SECTOR);
      return buf;
    };
    expect(sectorOf('plain', 2 ** 32 + 5).equals(sectorOf('plain64', 5))).toBe(true);
    expect(sectorOf('plain64', 2 ** 32 + 5).equals(sectorOf('plain64', 5))).toBe(false);
  });

  test('essiv encrypts the sector number with a hash of the key', () => {
    const key = randomBytes(16);
    const data = randomBytes(SECTOR * 70);
    const buf = Buffer.from(data);
    const spec = { algorithm: 'aes-128', mode: 'cbc', ivgen: 'essiv', ivgenHash: 'sha256' } as const;
    openBlockCipher(spec, key).encrypt(buf, SECTOR * 9);
    const salt = createHash('sha256').update(key).digest();
    const ivOf = (sector: number): Buffer =>
      createCipheriv('aes-256-ecb', salt, null).setAutoPadding(false).update(plain64(sector));
    expect(buf.equals(reference('aes-128-cbc', key, data, ivOf, 9))).toBe(true);
  });

  test('a key whose halves are equal', () => {
    const key = Buffer.alloc(64, 3);
    const cipher = openBlockCipher(
      { algorithm: 'aes-256', mode: 'xts', ivgen: 'plain64', ivgenHash: null },
      key,
    );
    const data = randomBytes(SECTOR * 3);
    const buf = Buffer.from(data);
    cipher.encrypt(buf, 0);
    expect(buf.equals(data)).toBe(false);
    cipher.decrypt(buf, 0);
    expect(buf.equals(data)).toBe(true);
  });

  test.each([
    // IEEE 1619-2007, annex B: vectors 4 and 10 (their first blocks).
    [
      'aes-128',
      '27182818284590452353602874713526' + '31415926535897932384626433832795',
      0,
      '27a7479befa1d476489f308cd4cfa6e2',
    ],
    [
      'aes-256',
      '2718281828459045235360287471352662497757247093699959574966967627' +
        '3141592653589793238462643383279502884197169399375105820974944592',
      255,
      '1c3b3a102f770386e4836c99e370cf9b',
    ],
  ] as const)('XTS vectors of the standard, %s', (name, key, sector, expected) => {
    const data = Buffer.from(Array.from({ length: SECTOR }, (_, i) => i % 256));
    for (const context of [
      openContext(`${name}-xts`, Buffer.from(key, 'hex'), true),
      xtsContext(name, Buffer.from(key, 'hex'), true),
    ]) {
      const buf = Buffer.from(data);
      context.run(buf, 0, SECTOR, plain64(sector), 1);
      expect(buf.toString('hex', 0, 16)).toBe(expected);
    }
  });

  test.each(cases)('%s in mode %s: with and without OpenSSL called directly', (algorithm, mode) => {
    const key = randomBytes(KEY_BYTES[algorithm] * (mode === 'xts' ? 2 : 1));
    const name = `${algorithm}-${mode}`;
    const ivs = randomBytes(16 * 40);
    for (const encrypt of [true, false]) {
      const direct = openContext(name, key, encrypt);
      const portable = portableContext(name, key, encrypt);
      // An odd start: data need not be aligned.
      const theirs = randomBytes(SECTOR * 40 + 3);
      const ours = Buffer.from(theirs);
      direct.run(theirs, 3, SECTOR, ivs, 40);
      portable.run(ours, 3, SECTOR, ivs, 40);
      expect(ours.equals(theirs)).toBe(true);
      direct.free();
      direct.free();
    }
  });

  test('OpenSSL is asked for nothing it does not have', () => {
    expect(openEvpCipher('aes-192-xts', randomBytes(48), true)).toBeNull();
    expect(openEvpCipher('nothing', randomBytes(16), true)).toBeNull();
  });

  test('ciphers this host lacks and keys of the wrong length', () => {
    const spec = { mode: 'xts', ivgen: 'plain64', ivgenHash: null } as const;
    expect(() => openBlockCipher({ ...spec, algorithm: '3des' }, randomBytes(48))).toThrow(
      "Algorithm '3des' not supported",
    );
    expect(() => openBlockCipher({ ...spec, algorithm: 'aes-256' }, randomBytes(63))).toThrow(
      'XTS cipher key length should be a multiple of 2',
    );
    expect(() => openBlockCipher({ ...spec, algorithm: 'aes-256' }, randomBytes(32))).toThrow();
  });
});

/** Option sets QEMU and we both can do (aes-192 in other modes than xts makes the original abort). */
const COMBINATIONS = [
  '',
  'cipher-alg=aes-128',
  'cipher-alg=aes-192',
  'ivgen-alg=plain',
  'ivgen-alg=essiv',
  'cipher-mode=cbc',
  'cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256',
  'cipher-mode=cbc,ivgen-alg=plain,ivgen-hash-alg=sha1',
  'cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5',
  'cipher-mode=ctr,ivgen-alg=essiv',
  'cipher-alg=aes-128,cipher-mode=ctr',
  'cipher-mode=ecb',
  'cipher-mode=ecb,ivgen-alg=essiv',
  ...['md5', 'sha1', 'sha224', 'sha384', 'sha512', 'ripemd160'].map((hash) => `hash-alg=${hash}`),
];

/** Fewer for the other direction: the original takes two seconds to make a volume. */
const MADE_BY_QEMU = [
  '',
  'cipher-alg=aes-192,hash-alg=sha384',
  'cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=md5,hash-alg=sha1',
  'cipher-mode=ctr,ivgen-alg=plain,hash-alg=ripemd160',
  'cipher-mode=ecb,ivgen-alg=essiv,hash-alg=sha512',
];

/** The options as an object. */
function parseOptions(text: string): Record<string, string> {
  return Object.fromEntries(text.split(',').flatMap((pair) => (pair === '' ? [] : [pair.split('=')])));
}

describe('LUKS volumes', () => {
  test.for(MADE_BY_QEMU)('made by QEMU: %s', async (options, context) => {
    requirePeer(context, 'qemu-img');
    const content = randomBytes(64 * 1024);
    const volume = qemuVolume(dir, options, content);
    const opened = await openLuks(readerOf(volume), passphrase);
    const payload = Buffer.from(volume.subarray(opened.payloadOffset));
    opened.cipher.decrypt(payload, 0);
    expect(payload.equals(content)).toBe(true);
    expect(withoutNewer(opened.info)).toEqual(qemuInfo(dir, volume));
    expect(await readLuksInfo(readerOf(volume))).toEqual(opened.info);
    expect(luksPayloadOffset(parseOptions(options))).toBe(opened.payloadOffset);
    await expect(openLuks(readerOf(volume), Buffer.from('wrong'))).rejects.toMatchObject({
      message: 'Invalid password, cannot unlock any keyslot',
      errno: 1,
    });
    opened.cipher.close();
  });

  test.for(COMBINATIONS)('made here: %s', async (options, context) => {
    requirePeer(context, 'qemu-img');
    const content = randomBytes(64 * 1024);
    const made = await createLuks({ ...parseOptions(options), 'iter-time': 0 }, passphrase);
    const encrypted = Buffer.from(content);
    made.cipher.encrypt(encrypted, 0);
    const volume = Buffer.alloc(made.payloadOffset + content.length);
    made.header.copy(volume);
    encrypted.copy(volume, made.payloadOffset);
    expect(qemuInfo(dir, volume)).toEqual(withoutNewer(made.info));
    expect(content.equals(Buffer.from(qemuReads(dir, volume, 's')))).toBe(true);
    expect(qemuReads(dir, volume, 'w')).toBe('Invalid password, cannot unlock any keyslot');
    expect(await readLuksInfo(readerOf(volume))).toEqual(made.info);
    made.cipher.close();
  });

  test.for(['cbc', 'ctr', 'ecb'] as const)('AES-192 in mode %s, which QEMU cannot make', async (mode) => {
    const made = await createLuks(
      { 'cipher-alg': 'aes-192', 'cipher-mode': mode, 'iter-time': 0 },
      passphrase,
    );
    const opened = await openLuks(readerOf(made.header), passphrase);
    const data = randomBytes(4096);
    const buf = Buffer.from(data);
    made.cipher.encrypt(buf, 8192);
    opened.cipher.decrypt(buf, 8192);
    expect(buf.equals(data)).toBe(true);
  });

  test('options that cannot be had: the messages are QEMU’s', async (context) => {
    requirePeer(context, 'qemu-img');
    for (const options of [
      'cipher-alg=des',
      'cipher-alg=3des,cipher-mode=cbc',
      'ivgen-alg=essiv,ivgen-hash-alg=sha1',
      'cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha512',
      'cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha384',
    ]) {
      let theirs = '';
      try {
        qemuVolume(dir, options, Buffer.alloc(SECTOR));
      } catch (error) {
        theirs = (error as Error).message;
      }
      const ours = await createLuks({ ...parseOptions(options), 'iter-time': 0 }, passphrase).catch(
        (error: Error) => error.message,
      );
      expect(ours).toBe(theirs);
    }
    await expect(createLuks({ 'cipher-alg': 'cast5-128' }, passphrase)).rejects.toThrow(
      'Unsupported cipher mode xts',
    );
  });

  test('a volume with a cipher that OpenSSL lacks is described and opened', async (context) => {
    requirePeer(context, 'qemu-img');
    const volume = qemuVolume(dir, 'cipher-alg=serpent-256', Buffer.alloc(SECTOR));
    expect(withoutNewer(await readLuksInfo(readerOf(volume)))).toEqual(qemuInfo(dir, volume));
    const { cipher, payloadOffset } = await openLuks(readerOf(volume), passphrase);
    const sector = Buffer.from(volume.subarray(payloadOffset, payloadOffset + SECTOR));
    cipher.decrypt(sector, 0);
    cipher.close();
    expect(sector.equals(Buffer.alloc(SECTOR))).toBe(true);
  });

  test('iteration counts follow the wanted time', async () => {
    expect(iterationsFor(1_000_000, 2000, 1, 1000)).toBe(2_000_000);
    expect(iterationsFor(1_000_000, 2000, 8, 1000)).toBe(250_000);
    expect(iterationsFor(1_000_000, 0, 1, 1000)).toBe(1000);
    expect(() => iterationsFor(8773225, -1, 1, 1000)).toThrow(
      'PBKDF iterations 8773225 too large to scale: Numerical result out of range',
    );
    expect(() => iterationsFor(8_680_172, 1e12, 8, 1000)).toThrow(
      /^PBKDF iterations 1085021500000000 larger than \d+: Numerical result out of range$/,
    );
    const start = performance.now();
    const { info } = await createLuks({ 'iter-time': 400 }, passphrase);
    expect(performance.now() - start).toBeGreaterThan(400);
    const [slot] = info.slots;
    expect(slot?.iters).toBeGreaterThan(10_000);
    expect(info['master-key-iters']).toBeGreaterThan(1000);
  });

  test('passphrases are text', () => {
    expect(passphraseFromSecret('s', Buffer.from('grün'))).toEqual(Buffer.from('grün'));
    for (const bytes of [Buffer.from([0xff, 0xfe]), Buffer.from('a\0b')]) {
      expect(() => passphraseFromSecret('s', bytes)).toThrow('Data from secret s is not valid UTF-8');
    }
  });
});

/** Host offset of the first guest cluster of a qcow2 image. */
function firstCluster(image: Buffer): number {
  const l2 = Number(image.readBigUInt64BE(Number(image.readBigUInt64BE(40))) & 0x00fffffffffffe00n);
  return Number(image.readBigUInt64BE(l2) & 0x00fffffffffffe00n);
}

/** Offset of the LUKS header a qcow2 image points to (header extension 0x0537be77). */
function cryptoHeader(image: Buffer): number {
  for (let at = image.readUInt32BE(100); ; at += 8 + Math.ceil(image.readUInt32BE(at + 4) / 8) * 8) {
    if (image.readUInt32BE(at) === 0x0537be77) return Number(image.readBigUInt64BE(at + 8));
    if (image.readUInt32BE(at) === 0) throw new Error('no crypto header');
  }
}

describe('qcow2 images made by QEMU', () => {
  const file = path.join(dir, 'image.qcow2');
  const bytes = 64 * 1024;

  function makeImage(format: 'aes' | 'luks'): Buffer {
    const options = `encrypt.format=${format},encrypt.key-secret=s${format === 'luks' ? ',encrypt.iter-time=0' : ''}`;
    rmSync(file, { force: true });
    expect(qemu('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', options, file, '1M'], file)).toMatchObject({
      status: 0,
    });
    writeFileSync(path.join(dir, 'content'), randomBytes(bytes));
    const source = path.join(dir, 'content');
    const opened = `driver=qcow2,file.filename=${file},encrypt.format=${format},encrypt.key-secret=s`;
    const args = ['--object', `secret,id=s,data=${PASSPHRASE}`, '--image-opts', opened];
    // A cluster before it, so that host and guest offsets differ.
    spawnSync('qemu-io', [...args, '-c', 'write 512k 64k', '-c', `write -s ${source} 0 64k`]);
    return readFileSync(file);
  }

  test('luks: sectors are numbered by where they are in the file', async (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    const image = makeImage('luks');
    const start = cryptoHeader(image);
    const { cipher } = await openLuks(readerOf(image.subarray(start)), passphrase);
    const at = firstCluster(image);
    const cluster = Buffer.from(image.subarray(at, at + bytes));
    cipher.decrypt(cluster, at);
    expect(cluster.equals(readFileSync(path.join(dir, 'content')))).toBe(true);
  });

  test('aes: sectors are numbered by where the guest sees them', (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    const image = makeImage('aes');
    const at = firstCluster(image);
    const cluster = Buffer.from(image.subarray(at, at + bytes));
    const cipher = openAes(passphrase);
    cipher.decrypt(cluster, 0);
    expect(cluster.equals(readFileSync(path.join(dir, 'content')))).toBe(true);
  });
});

test('aes: long passphrases are cut to 16 bytes', () => {
  const encrypted = (text: string): Buffer => {
    const buf = Buffer.alloc(SECTOR);
    openAes(Buffer.from(text)).encrypt(buf, 0);
    return buf;
  };
  expect(encrypted('0123456789abcdef')).toEqual(encrypted('0123456789abcdefXYZ'));
  expect(encrypted('0123456789abcde')).not.toEqual(encrypted('0123456789abcdef'));
});
