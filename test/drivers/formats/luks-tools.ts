/** luks images for the tests: made by cryptsetup and the original, opened here through a layer. */

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { openBlockCipher } from '../../../src/drivers/crypto/block-cipher.ts';
import { resolveCipher } from '../../../src/drivers/crypto/luks-header.ts';
import { testLayer } from '../qcow2/open-layer.ts';

/** Runs cryptsetup with `input`; throws with its message when it fails. */
export function cryptsetup(args: readonly string[], input: Buffer): void {
  const { status, stderr } = spawnSync('cryptsetup', ['-q', ...args], { input });
  if (status !== 0) throw new Error(`cryptsetup ${args.join(' ')}: ${stderr.toString()}`);
}

/** A file of zeroes. */
export function emptyFile(folder: string, name: string, bytes: number): string {
  const file = path.join(folder, name);
  writeFileSync(file, '');
  truncateSync(file, bytes);
  return file;
}

/** The volume's key, which cryptsetup tells. */
export function volumeKey(folder: string, file: string, passphrase: Buffer): Buffer {
  const keyFile = path.join(folder, `key-${randomBytes(4).toString('hex')}`);
  const dump = ['luksDump', '--dump-volume-key', '--volume-key-file', keyFile, '--key-file', '-', file];
  cryptsetup(dump, passphrase);
  return readFileSync(keyFile);
}

export interface Payload {
  readonly offset: number;
  readonly cipher: string;
  readonly sectorBytes: number;
}

/** Puts `content` into a volume by the textbook: no code of ours but the cipher, whose own tests are elsewhere. */
export function fillVolume(file: string, key: Buffer, payload: Payload, content: Buffer): void {
  const image = readFileSync(file);
  const { sectorBytes } = payload;
  const cipher = openBlockCipher({ ...resolveCipher(payload.cipher, key.length), sectorBytes }, key);
  const data = Buffer.from(content);
  cipher.encrypt(data, 0);
  cipher.close();
  data.copy(image, payload.offset);
  writeFileSync(file, image);
}

/** What the driver reads out of the volume, from the start; `more` are options of the node. */
export async function readVolume(
  file: string,
  passphrase: Buffer,
  bytes: number,
  more: Readonly<Record<string, unknown>> = {},
): Promise<Buffer> {
  const { layer, close } = testLayer(passphrase.toString('latin1'));
  try {
    // The layer of the tests takes text; these passphrases are bytes.
    Object.assign(layer, { secret: () => passphrase });
    const node = await openFromOptions(layer, {
      driver: 'luks',
      'key-secret': 's',
      'read-only': true,
      file: { driver: 'file', filename: file },
      ...more,
    });
    const memory = allocateIoMemory(bytes);
    await wrapped.preadv(node, 0, bytes, vectorOf(memory), 0);
    return memory.buf;
  } finally {
    await close();
  }
}
