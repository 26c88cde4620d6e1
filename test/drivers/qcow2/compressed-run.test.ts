/** Compressed clusters read in runs: one that is damaged is an error of the request, whenever it is found. */

import { rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import type { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { requirePeer } from '../../peers/requires.ts';
import { editImage } from './damage.ts';
import { peer, scratch, testLayer } from './open-layer.ts';
import { createRandom } from './random.ts';

const BYTES = 8 * 1024 * 1024;
const CLUSTER = 64 * 1024;
const OFFSET = (1n << 54n) - 1n;

let dir: string;
let layer: BlockLayer;
let close: () => Promise<void>;

beforeEach(() => {
  dir = scratch();
  ({ layer, close } = testLayer());
});

afterEach(async () => {
  await close();
  rmSync(dir, { recursive: true, force: true });
});

/** Not so little that a cluster is unpacked in no time. */
function someText(): Buffer {
  const random = createRandom(1);
  const words = Array.from({ length: 500 }, () => `${random.below(1 << 30).toString(36)} `);
  let text = '';
  while (text.length < BYTES) text += words[random.below(words.length)];
  return Buffer.from(text.slice(0, BYTES));
}

test.for(['zlib', 'zstd'])('a damaged cluster at the start of a long run (%s)', async (type, context) => {
  requirePeer(context, 'qemu-img');
  const [raw, image] = [path.join(dir, 'raw'), path.join(dir, 'image')];
  const content = someText();
  writeFileSync(raw, content);
  peer('qemu-img', 'convert', '-c', '-O', 'qcow2', '-o', `compression_type=${type}`, '-f', 'raw', raw, image);
  const editor = editImage(image);
  const at = Number(editor.u64(editor.l2At(0, 1)) & OFFSET);
  editor.buf.fill(0xff, at, at + 64);
  editor.save();

  const file = { driver: 'file', filename: image };
  const node = await openFromOptions(layer, { driver: 'qcow2', 'read-only': true, file });
  const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };
  const backend = await layer.createBackend(node, { perm: Perm.consistentRead, shared: Perm.all }, owner);
  const unhandled: unknown[] = [];
  const note = (reason: unknown): void => void unhandled.push(reason);
  process.on('unhandledRejection', note);
  try {
    for (let round = 0; round < 4; round++) {
      const mem = allocateIoMemory(BYTES);
      await expect(wrapped.preadv(node, 0, BYTES, vectorOf(mem), 0)).rejects.toThrow('Input/output error');
      const rest = BYTES - 2 * CLUSTER;
      await wrapped.preadv(node, 2 * CLUSTER, rest, vectorOf(mem, 0, rest), 0);
      expect(mem.buf.subarray(0, rest).equals(content.subarray(2 * CLUSTER))).toBe(true);
    }
    expect(unhandled).toEqual([]);
  } finally {
    process.off('unhandledRejection', note);
    await backend.close();
  }
});
