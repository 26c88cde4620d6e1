/**
 * A guest that writes to its rings, tables, headers and data while the vhost-user-blk export reads them: every number is
 * read once there, and checked after that. It may hurt itself only.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { closeFd } from '../../src/aio/ffi.ts';
import { queueLayout } from '../../src/virtio/driver-queue.ts';
import { DescriptorFlag, Feature } from '../../src/virtio/ring.ts';
import { makeScratchDir, type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { createRandom } from './random.ts';
import { createQueue, createRegion, dropRegion, RawFrontEnd } from './raw-front-end.ts';

const SIZE = 1024 * 1024;
const MEMORY_BYTES = 1024 * 1024;
const QUEUE_SIZE = 64;
const { next, write, indirect } = DescriptorFlag;
const LAYOUT = queueLayout(QUEUE_SIZE);

let dir: string;
let daemon: RunningDaemon;
let qmp: QmpClient;

beforeEach(async () => {
  dir = makeScratchDir();
  writeFileSync(`${dir}/disk`, Buffer.alloc(SIZE, 0x5a));
  daemon = await startDaemon('qblockd', { dir });
  qmp = await daemon.connect();
  await qmp.negotiate();
  await qmp.execute('blockdev-add', { driver: 'file', 'node-name': 'f', filename: `${dir}/disk` });
  const addr = { type: 'unix', path: `${dir}/v` };
  await qmp.execute('block-export-add', { type: 'vhost-user-blk', id: 'v', 'node-name': 'f', addr });
});

afterEach(async () => {
  qmp.close();
  const { status, signal } = await daemon.stop();
  expect({ status, signal }).toEqual({ status: 0, signal: null });
  rmSync(dir, { recursive: true, force: true });
});

/** One front end whose guest writes at random for a while; resolves with how many requests came back. */
async function scribble(seed: number, turns: number): Promise<number> {
  const random = createRandom(seed);
  const memory = createRegion(0, MEMORY_BYTES);
  const queue = createQueue(memory, 0, QUEUE_SIZE);
  const frontEnd = await RawFrontEnd.connect(`${dir}/v`, [Feature.indirectDescriptors]);
  try {
    await frontEnd.setMemory(memory);
    await frontEnd.start(queue);
    const { buf } = memory.shared.window(0);
    const words = new Uint32Array(buf.buffer, buf.byteOffset, MEMORY_BYTES / 4);
    const indices = new Uint16Array(buf.buffer, buf.byteOffset, MEMORY_BYTES / 2);
    const tableAt = LAYOUT.bytes;
    const headerAt = tableAt + QUEUE_SIZE * 16;
    let available = 0;
    const describe = (at: number, address: number, length: number, flags: number, link: number): void => {
      words[at / 4] = address;
      words[at / 4 + 1] = 0;
      words[at / 4 + 2] = length;
      words[at / 4 + 3] = (flags | (link << 16)) >>> 0;
    };
    for (let turn = 0; turn < turns; turn++) {
      // A read that makes sense, directly or through a table.
      const first = 3 * random(20);
      const base = random(2) === 0 ? 0 : tableAt;
      const at = base === 0 ? first : 0;
      describe(base + at * 16, headerAt, 16, next, at + 1);
      describe(
        base + (at + 1) * 16,
        65536 + 4096 * random(100),
        512 * (1 + random(16)),
        write | next,
        at + 2,
      );
      describe(base + (at + 2) * 16, headerAt + 64, 1, write, 0);
      if (base !== 0) describe(first * 16, tableAt, 48, indirect, 0);
      words[headerAt / 4] = 0;
      words[headerAt / 4 + 2] = random(SIZE / 512 - 16);
      indices[LAYOUT.available / 2 + 2 + (available & (QUEUE_SIZE - 1))] = first;
      available = (available + 1) & 0xffff;
      Atomics.store(indices, LAYOUT.available / 2 + 1, available);
      queue.ring.kick();
      // While it is read: other addresses, lengths, links, types and places, back and forth.
      for (let i = 0; i < 40; i++) {
        const target = (base + (at + random(3)) * 16) / 4 + random(4);
        const was = words[target] as number;
        words[target] = random(3) === 0 ? random(2 ** 31) * 2 : was ^ (1 << random(32));
        words[headerAt / 4 + random(4)]! ^= 1 << random(8);
        words[target] = was;
      }
      // The other side has to come to it.
      if (turn % 8 === 0) await frontEnd.roundTrip();
    }
    await frontEnd.roundTrip();
    return queue.ring.usedIndex;
  } finally {
    frontEnd.close();
    closeFd(queue.kickFd);
    dropRegion(memory);
  }
}

test('a guest that writes to what is being read hurts itself only', async () => {
  let served = 0;
  for (let seed = 1; seed <= 40; seed++) served += await scribble(seed, 200);
  expect(served).toBeGreaterThan(100);
  expect(await qmp.execute('query-block-exports')).toHaveLength(1);
  expect(readFileSync(`${dir}/disk`).every((byte) => byte === 0x5a)).toBe(true);
});
