/**
 * Hostile front ends and guests of the vhost-user-blk export: rings that make no sense, messages that are mutated, out
 * of order, truncated or laden with descriptors. They may hurt themselves only: the daemon lives, answers QMP, serves
 * the next front end, leaks nothing, and the disk keeps what was not written to.
 *
 * HOSTILE_MESSAGES is how many mutated messages are sent (npm run test:vhost sends a million).
 */

import { readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createEventFd, readInto, sendWithFds, takeSocketDescriptor } from '../../src/aio/descriptors.ts';
import { addressOf, closeFd } from '../../src/aio/ffi.ts';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import { createWatch, type ReadableWatch } from '../../src/aio/poller.ts';
import { createMemoryFile } from '../../src/aio/shared-memory.ts';
import { connectTo } from '../../src/aio/sockets.ts';
import { E } from '../../src/errors/errno.ts';
import { VirtioBlockDriver } from '../../src/virtio/block-driver.ts';
import { queueLayout } from '../../src/virtio/driver-queue.ts';
import { DescriptorFlag, Feature } from '../../src/virtio/ring.ts';
import { DRIVER_PROTOCOL_FEATURES, FrontEnd } from '../../src/virtio/vhost-user/front-end.ts';
import {
  encodeMessage,
  encodeRegion,
  encodeU64,
  encodeVringState,
  Request,
} from '../../src/virtio/vhost-user/messages.ts';
import { makeScratchDir, type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { createRandom } from './random.ts';

const MESSAGES = Number(process.env.HOSTILE_MESSAGES ?? 3000);
const SEED = Number(process.env.HOSTILE_SEED ?? 1);
const QUEUE_SIZE = 8;
const { next, write, indirect } = DescriptorFlag;

let dir: string;
let daemon: RunningDaemon;
let qmp: QmpClient;

beforeAll(async () => {
  dir = makeScratchDir();
  writeFileSync(`${dir}/disk`, Buffer.alloc(1024 * 1024, 0x5a));
  daemon = await startDaemon('qblockd', { dir });
  qmp = await daemon.connect();
  await qmp.negotiate();
  await qmp.execute('blockdev-add', { driver: 'file', 'node-name': 'f', filename: `${dir}/disk` });
  await qmp.execute('block-export-add', {
    type: 'vhost-user-blk',
    id: 'v',
    'node-name': 'f',
    'num-queues': 2,
    addr: { type: 'unix', path: `${dir}/v` },
  });
});

afterAll(async () => {
  qmp.close();
  const { stderr, status, signal } = await daemon.stop();
  expect({ status, signal }).toEqual({ status: 0, signal: null });
  expect(stderr).not.toContain('Error');
  expect(readFileSync(`${dir}/disk`).every((byte) => byte === 0x5a)).toBe(true);
  rmSync(dir, { recursive: true, force: true });
});

/** A front end that behaves is served. */
async function expectServed(): Promise<void> {
  const driver = await VirtioBlockDriver.open({ path: `${dir}/v`, queues: 2, depth: 4, reconnect: false });
  const mem = allocateIoMemory(4096);
  await driver.read(8192, vectorOf(mem));
  expect(mem.buf[4095]).toBe(0x5a);
  driver.close();
}

/** What the daemon's open descriptors are. */
function descriptors(): string[] {
  const folder = `/proc/${daemon.process.pid}/fd`;
  return readdirSync(folder).map((fd) => {
    try {
      return readlinkSync(`${folder}/${fd}`);
    } catch {
      return 'closed meanwhile';
    }
  });
}

interface Descriptor {
  readonly address: number;
  readonly length: number;
  readonly flags?: number;
  readonly next?: number;
}

function openFrontEnd(queueSize: number, called: () => void): Promise<FrontEnd> {
  return FrontEnd.open({
    path: `${dir}/v`,
    queues: 2,
    queueSize,
    dataBytes: 65536,
    features: [Feature.indirectDescriptors],
    protocolFeatures: DRIVER_PROTOCOL_FEATURES,
    reconnect: false,
    called,
    ringsRenewed: () => undefined,
    connected: () => undefined,
    lost: () => undefined,
    configChanged: () => undefined,
  });
}

/** A front end whose first queue holds these descriptors; resolves with how many requests have come back. */
async function ring(
  descriptors: readonly Descriptor[],
  available: { readonly index?: number; readonly heads?: readonly number[] } = {},
): Promise<number> {
  let calls = 0;
  const frontEnd = await openFrontEnd(QUEUE_SIZE, () => {
    calls++;
  });
  const { buf } = frontEnd.memory;
  for (const [index, { address, length, flags = 0, next: link = 0 }] of descriptors.entries()) {
    const at = index < 100 ? index * 16 : 0;
    buf.writeBigUInt64LE(BigInt(address), at);
    buf.writeUInt32LE(length, at + 8);
    buf.writeUInt16LE(flags, at + 12);
    buf.writeUInt16LE(link, at + 14);
  }
  const availableAt = queueLayout(QUEUE_SIZE).available;
  const { heads = [0], index = heads.length } = available;
  for (const [i, head] of heads.entries()) buf.writeUInt16LE(head, availableAt + 4 + 2 * i);
  buf.writeUInt16LE(index, availableAt + 2);
  frontEnd.queues[0]?.kick();
  // A round trip through the other side, and time for what it does afterwards.
  await frontEnd.readConfig(60).catch(() => undefined);
  await new Promise((resolve) => setTimeout(resolve, 20));
  const done = frontEnd.queues[0]?.usedIndex ?? 0;
  frontEnd.close();
  return calls < 0 ? calls : done;
}

const data = 65536 * 0 + 16384;
const header = { address: data, length: 16, flags: next, next: 1 };
const status = { address: data + 64, length: 1, flags: write };

test('a request that makes sense comes back', async () => {
  expect(
    await ring([header, { address: data + 4096, length: 512, flags: write | next, next: 2 }, status]),
  ).toBe(1);
});

const TABLE = 16384 + 8192;
test.each<[string, readonly Descriptor[], { index?: number; heads?: number[] }?]>([
  ['a circle of one', [{ address: data, length: 16, flags: next, next: 0 }]],
  ['a circle of two', [header, { address: data, length: 16, flags: next, next: 0 }]],
  ['a head outside of the table', [header, status], { heads: [QUEUE_SIZE] }],
  ['a head far outside', [header, status], { heads: [65535] }],
  ['a link outside of the table', [{ ...header, next: QUEUE_SIZE }]],
  ['an available index far ahead', [header, status], { index: QUEUE_SIZE + 1 }],
  ['an available index behind', [header, status], { index: 65535 }],
  [
    'an address outside of memory',
    [header, { address: 2 ** 40, length: 512, flags: write | next, next: 2 }, status],
  ],
  [
    'an address above 2^53',
    [header, { address: 2 ** 63, length: 512, flags: write | next, next: 2 }, status],
  ],
  [
    'a range that begins inside and ends outside',
    [header, { ...status, address: 16384 + 60000, length: 2 ** 31 }],
  ],
  ['a length that overflows', [header, { ...status, length: 2 ** 32 - 1 }]],
  ['no length', [{ ...header, length: 0 }, status]],
  ['a header outside of memory', [{ ...header, address: 2 ** 45 }, status]],
  ['a header that is too short', [{ ...header, length: 15 }, status]],
  ['no status', [{ ...header, flags: 0 }]],
  [
    'a readable part behind a writable one',
    [
      { ...status, flags: write | next, next: 1 },
      { ...header, flags: 0 },
    ],
  ],
  ['an indirect table in an indirect table', [{ address: 0, length: 128, flags: indirect }]],
  ['an indirect table outside of memory', [{ address: 2 ** 40, length: 32, flags: indirect }]],
  ['an indirect table of an odd length', [{ address: TABLE, length: 17, flags: indirect }]],
  ['an empty indirect table', [{ address: TABLE, length: 0, flags: indirect }]],
  ['an indirect table longer than the queue', [{ address: TABLE, length: 16 * 1024, flags: indirect }]],
  [
    'an indirect table with a successor',
    [{ address: TABLE, length: 32, flags: indirect | next, next: 1 }, status],
  ],
])('a ring with %s breaks that queue only', async (_name, descriptors, available) => {
  const done = await ring(descriptors, available);
  expect(done).toBeLessThanOrEqual(1);
  await expectServed();
});

/** Fills the first queue of a ring of 32768 with one request, which has so many parts of one byte. */
function fillRing(frontEnd: FrontEnd, parts: number): void {
  const { buf } = frontEnd.memory;
  const size = frontEnd.settings.queueSize;
  for (let i = 0; i < parts; i++) {
    const isLast = i === parts - 1;
    buf.writeBigUInt64LE(BigInt(frontEnd.dataAddress + i), i * 16);
    buf.writeUInt32LE(1, i * 16 + 8);
    buf.writeUInt16LE(isLast ? write : next, i * 16 + 12);
    buf.writeUInt16LE(isLast ? 0 : i + 1, i * 16 + 14);
  }
  // No request of this type: it comes back at once.
  buf.writeUInt32LE(99, frontEnd.dataAddress);
  buf.writeUInt16LE(size, queueLayout(size).available + 2);
  frontEnd.queues[0]!.kick();
}

test('a ring full of long requests does not keep others from being served', async () => {
  const frontEnd = await openFrontEnd(32768, () => undefined);
  fillRing(frontEnd, 500);
  let replies = 0;
  while (frontEnd.queues[0]!.usedIndex !== 32768) {
    await qmp.execute('query-block-exports');
    replies++;
  }
  frontEnd.close();
  expect(replies).toBeGreaterThan(4);
});

test('a request of too many parts breaks its queue', async () => {
  const frontEnd = await openFrontEnd(32768, () => undefined);
  fillRing(frontEnd, 2000);
  await qmp.execute('query-block-exports');
  await frontEnd.readConfig(60);
  expect(frontEnd.queues[0]!.usedIndex).toBe(0);
  frontEnd.close();
  await expectServed();
});

test('a used ring outside of memory, misaligned or across its end is refused', async () => {
  const memory = createMemoryFile('hostile', 65536);
  for (const addresses of [
    [0, 0x7000, 65536 - 8],
    [0, 0x7000, 65537],
    [8, 0x7000, 0x8000],
    [0, 0x7001, 0x8000],
    [0, 0x7000, 0x8002],
    [2 ** 45, 0x7000, 0x8000],
  ]) {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(1, 0);
    const region = encodeRegion({ guestAddress: 0, bytes: 65536, userAddress: 2 ** 44, mapOffset: 0 });
    const vring = Buffer.alloc(40);
    for (const [i, address] of addresses.entries())
      vring.writeBigUInt64LE(BigInt(2 ** 44 + address), [8, 24, 16][i] as number);
    const kick = createEventFd();
    await sendAll([
      { message: encodeMessage(Request.setMemTable, 0, Buffer.concat([head, region])), fds: [memory] },
      { message: encodeMessage(Request.setVringNum, 0, encodeVringState(0, QUEUE_SIZE)), fds: [] },
      { message: encodeMessage(Request.setVringAddr, 0, vring), fds: [] },
      { message: encodeMessage(Request.setVringKick, 0, encodeU64(0)), fds: [kick] },
    ]);
    closeFd(kick);
    await expectServed();
  }
  closeFd(memory);
});

interface Sent {
  readonly message: Buffer;
  readonly fds: readonly number[];
}

/** Something no connection goes on after: all before it has been dealt with when the other side hangs up. */
const LAST: Sent = { message: Buffer.concat([Buffer.alloc(4), Buffer.alloc(8, 2)]), fds: [] };
const PATIENCE_MS = 100;

/** Resolves when the other side has hung up, or seems to wait for more. */
async function hungUp(fd: number): Promise<boolean> {
  const drain = Buffer.allocUnsafeSlow(65536);
  let watch: ReadableWatch | null = null;
  const ended = await new Promise<boolean>((resolve) => {
    const timer = setTimeout(() => resolve(false), PATIENCE_MS);
    watch = createWatch(fd, () => {
      const got = readInto(fd, addressOf(drain), drain.length);
      if (got > 0 || got === -E.EAGAIN) return;
      clearTimeout(timer);
      resolve(true);
    });
    watch.start();
  });
  (watch as ReadableWatch | null)?.stop();
  return ended;
}

/** Connects, sends all of it, waits until it has been dealt with and leaves. Whether the other side hung up. */
async function sendAll(messages: readonly Sent[]): Promise<boolean> {
  const fd = takeSocketDescriptor(
    await connectTo({ type: 'unix', path: `${dir}/v` }, { pauseOnConnect: true }),
  );
  for (const { message, fds } of [...messages, LAST]) {
    const memory = Buffer.allocUnsafeSlow(Math.max(1, message.length));
    memory.set(message);
    // The other side may have hung up.
    if (sendWithFds(fd, addressOf(memory), message.length, fds) < 0) break;
  }
  const ended = await hungUp(fd);
  closeFd(fd);
  return ended;
}

test('messages cut off, too long, of another version, with too many descriptors', async () => {
  const fds = Array.from({ length: 20 }, () => createEventFd());
  const whole = encodeMessage(Request.getFeatures, 0, Buffer.alloc(0));
  const tooLong = Buffer.from(whole);
  tooLong.writeUInt32LE(0x7fffffff, 8);
  const version = Buffer.from(whole);
  version.writeUInt32LE(2, 4);
  for (const message of [whole.subarray(0, 5), tooLong, version, encodeMessage(999, 0, Buffer.alloc(4096))])
    await sendAll([{ message, fds: [] }]);
  await sendAll([{ message: whole, fds }]);
  await sendAll([
    { message: encodeMessage(Request.setMemTable, 0, Buffer.alloc(8 + 8 * 32)), fds: fds.slice(0, 8) },
  ]);
  for (const fd of fds) closeFd(fd);
  // One that says nothing does not keep others out for longer than it stays.
  const silent = connect(`${dir}/v`);
  await new Promise((resolve) => silent.once('connect', resolve));
  silent.destroy();
  await expectServed();
});

test('descriptors that are of no use are closed', async () => {
  await expectServed();
  const before = descriptors().length;
  const memory = createMemoryFile('hostile', 65536);
  // A file can be neither watched nor kicked.
  for (const request of [
    Request.setBackendReqFd,
    Request.setVringKick,
    Request.setVringCall,
    Request.setLogFd,
  ])
    for (let i = 0; i < 8; i++)
      await sendAll([{ message: encodeMessage(request, 0, encodeU64(0)), fds: [memory] }]);
  // A record of requests under way comes too late for a queue at work.
  const inflight = Buffer.from(`${'00'.repeat(16)}0200080000000000`, 'hex');
  const head = Buffer.alloc(8);
  head.writeUInt32LE(1, 0);
  const region = encodeRegion({ guestAddress: 0, bytes: 65536, userAddress: 0, mapOffset: 0 });
  const vring = Buffer.alloc(40);
  vring.writeBigUInt64LE(0x2000n, 16);
  vring.writeBigUInt64LE(0x3000n, 24);
  const kick = createEventFd();
  for (let i = 0; i < 8; i++)
    await sendAll([
      { message: encodeMessage(Request.setMemTable, 0, Buffer.concat([head, region])), fds: [memory] },
      { message: encodeMessage(Request.setVringNum, 0, encodeVringState(0, QUEUE_SIZE)), fds: [] },
      { message: encodeMessage(Request.setVringAddr, 0, vring), fds: [] },
      { message: encodeMessage(Request.setVringKick, 0, encodeU64(0)), fds: [kick] },
      { message: encodeMessage(Request.getInflightFd, 0, inflight), fds: [] },
    ]);
  closeFd(kick);
  closeFd(memory);
  await expectServed();
  expect(descriptors().length, descriptors().join()).toBeLessThanOrEqual(before + 3);
});

test(`${MESSAGES} mutated messages`, { timeout: 60_000 + MESSAGES * 2 }, async () => {
  const random = createRandom(SEED);
  const maps = (): number => readFileSync(`/proc/${daemon.process.pid}/maps`, 'utf8').split('hostile').length;
  const before = descriptors().length;
  const memory = createMemoryFile('hostile', 65536);
  const event = createEventFd();
  const head = Buffer.alloc(8);
  head.writeUInt32LE(1, 0);
  const region = encodeRegion({ guestAddress: 0, bytes: 65536, userAddress: 4096, mapOffset: 0 });
  const vring = Buffer.alloc(40);
  for (const [i, address] of [4096, 0x3000, 0x2000].entries())
    vring.writeBigUInt64LE(BigInt(address), 8 + 8 * i);
  const known: readonly (readonly [number, Buffer, readonly number[]])[] = [
    [Request.setMemTable, Buffer.concat([head, region]), [memory]],
    [Request.addMemReg, Buffer.concat([Buffer.alloc(8), region]), [memory]],
    [Request.remMemReg, Buffer.concat([Buffer.alloc(8), region]), []],
    [Request.setVringNum, encodeVringState(0, QUEUE_SIZE), []],
    [Request.setVringBase, encodeVringState(0, 0), []],
    [Request.setVringAddr, vring, []],
    [Request.setVringKick, encodeU64(0), [event]],
    [Request.setVringCall, encodeU64(0), [event]],
    [Request.setVringEnable, encodeVringState(0, 1), []],
    [Request.getVringBase, encodeVringState(0, 0), []],
    [Request.setFeatures, encodeU64(0x174007e44), []],
    [Request.setProtocolFeatures, encodeU64(0x1f62f), []],
    [Request.getInflightFd, Buffer.from(`${'00'.repeat(16)}0200080000000000`, 'hex'), []],
    [
      Request.setInflightFd,
      Buffer.from(`${'0001000000000000'.padEnd(32, '0')}0200080000000000`, 'hex'),
      [memory],
    ],
    [Request.getConfig, Buffer.from('000000003c00000000000000'.padEnd(144, '0'), 'hex'), []],
    [Request.setConfig, Buffer.from('20000000010000000000000001', 'hex'), []],
    [Request.setBackendReqFd, Buffer.alloc(0), [event]],
    [Request.setLogBase, Buffer.concat([encodeU64(4096), encodeU64(0)]), [memory]],
    [Request.setLogFd, Buffer.alloc(0), [event]],
    [Request.resetDevice, Buffer.alloc(0), []],
    [Request.setStatus, encodeU64(0), []],
  ];
  let batches = 0;
  let dealtWith = 0;
  for (let sent = 0; sent < MESSAGES; ) {
    const batch: Sent[] = [];
    // The first ones are right as a rule, so that what follows meets a device at work.
    const length = 4 + random(30);
    for (let i = 0; i < length; i++, sent++) {
      const [request, payload, fds] =
        known[random(5) === 0 || i > 8 ? random(known.length) : i % known.length]!;
      const message = encodeMessage(request, random(2) * 8, payload);
      for (let flips = random(3) === 0 ? 1 + random(3) : 0; flips > 0; flips--)
        message[random(message.length)] = random(256);
      batch.push({
        message: random(60) === 0 ? message.subarray(0, random(message.length)) : message,
        fds: random(20) === 0 ? [event, memory, event] : fds,
      });
    }
    if (await sendAll(batch)) dealtWith++;
    batches++;
    if (sent % 50 < length) expect(Array.isArray(await qmp.execute('query-block-exports'))).toBe(true);
  }
  closeFd(memory);
  closeFd(event);
  expect(dealtWith / batches).toBeGreaterThan(0.8);
  await expectServed();
  expect(maps(), 'memory that is still mapped').toBe(1);
  for (let tries = 0; descriptors().length > before + 3 && tries < 200; tries++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  expect(descriptors().length, descriptors().join()).toBeLessThanOrEqual(before + 3);
});
