/**
 * What a front end changes while requests are under way: memory, logs, records of requests, the export itself. No page that
 * was written to may be missing in the log, and no request may be done by two.
 * A machine that moves is in vhost-user-move.test.ts.
 */

import { rmSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { closeFd } from '../../src/aio/ffi.ts';
import { createMemoryFile, mapSharedMemory } from '../../src/aio/shared-memory.ts';
import { queueLayout } from '../../src/virtio/driver-queue.ts';
import { inflightBytes } from '../../src/virtio/inflight.ts';
import { Feature } from '../../src/virtio/ring.ts';
import { encodeInflight, Request } from '../../src/virtio/vhost-user/messages.ts';
import { limitMs } from '../patience.ts';
import { makeScratchDir, type RunningDaemon, startWithMonitor } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import {
  at,
  createQueue,
  createRegion,
  diskContent,
  dropRegion,
  pagesOf,
  put,
  RawFrontEnd,
  type RawQueue,
  type Region,
  SharedLog,
} from './raw-front-end.ts';

const PAGE = 4096;
const MiB = 1024 * 1024;
const GiB = 1024 * MiB;
const SIZE = 8 * MiB;
const QUEUE_SIZE = 64;
const RING_BYTES = queueLayout(QUEUE_SIZE).bytes;
const { eventIndex, indirectDescriptors } = Feature;

let dir: string;
let daemon: RunningDaemon;
let qmp: QmpClient;
const ends: (() => void)[] = [];

beforeEach(async () => {
  dir = makeScratchDir();
  writeFileSync(`${dir}/disk`, diskContent(SIZE));
  ({ daemon, qmp } = await startWithMonitor(dir));
});

afterEach(async () => {
  for (const end of ends.splice(0).reverse()) end();
  qmp.close();
  await daemon.stop();
  rmSync(dir, { recursive: true, force: true });
});

/** Adds a node and an export of it; returns the export's socket. */
async function serve(id: string, node: object): Promise<string> {
  await qmp.execute('blockdev-add', { 'node-name': `n-${id}`, ...node });
  return await exportNode(id, `n-${id}`);
}

async function exportNode(id: string, node: string): Promise<string> {
  const path = `${dir}/${id}`;
  const addr = { type: 'unix', path };
  await qmp.execute('block-export-add', {
    type: 'vhost-user-blk',
    id,
    'node-name': node,
    writable: true,
    addr,
  });
  return path;
}

const disk = (): object => ({ driver: 'file', filename: `${dir}/disk` });
const slow = (ms: number): object => ({
  driver: 'null-co',
  size: SIZE,
  'read-zeroes': true,
  'latency-ns': limitMs(ms) * 1e6,
});

function region(guestAddress: number, bytes: number): Region {
  const made = createRegion(guestAddress, bytes);
  ends.push(() => dropRegion(made));
  return made;
}

function queueAt(home: Region, withEvents = false): RawQueue {
  const queue = createQueue(home, 0, QUEUE_SIZE, withEvents);
  ends.push(() => closeFd(queue.kickFd));
  return queue;
}

function logOf(bytes: number): SharedLog {
  const log = new SharedLog(bytes);
  ends.push(() => log.close());
  return log;
}

async function connect(
  path: string,
  features: readonly number[] = [],
  isLogged = false,
): Promise<RawFrontEnd> {
  const frontEnd = await RawFrontEnd.connect(path, features, isLogged);
  ends.push(() => frontEnd.close());
  return frontEnd;
}

const pause = (ms = 1): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits until so many requests have come back; returns their heads. */
async function reap(queue: RawQueue, count: number): Promise<number[]> {
  const heads: number[] = [];
  for (;;) {
    queue.ring.enableCalls();
    queue.ring.reap((head) => heads.push(head));
    if (heads.length >= count) return heads;
    await pause();
  }
}

// ---- what an earlier session has left ------------------------------------------------------------------------

/** A record in which this head is under way, as a device that was killed leaves it. */
function recordWith(head: number, usedIndex: number): { readonly fd: number; readonly payload: Buffer } {
  const bytes = inflightBytes(QUEUE_SIZE);
  const fd = createMemoryFile('record', bytes);
  const shared = mapSharedMemory(fd, 0, bytes);
  if (shared === null) throw new Error('no memory');
  ends.push(() => closeFd(fd));
  const { buf } = shared.window(0);
  buf.writeUInt16LE(1, 8);
  buf.writeUInt16LE(QUEUE_SIZE, 10);
  buf.writeUInt16LE(usedIndex, 14);
  buf[16 + 16 * head] = 1;
  buf.writeBigUInt64LE(7n, 16 + 16 * head + 8);
  shared.unmap();
  return { fd, payload: encodeInflight({ mapBytes: bytes, mapOffset: 0, queues: 1, queueSize: QUEUE_SIZE }) };
}

describe('what an earlier session has begun', () => {
  const HEAD = RING_BYTES;
  const DATA = RING_BYTES + PAGE;
  const USED_LOG = 2 * MiB;

  async function prepare(): Promise<{
    readonly frontEnd: RawFrontEnd;
    readonly queue: RawQueue;
    readonly memory: Region;
    readonly record: ReturnType<typeof recordWith>;
  }> {
    const path = await serve('v', disk());
    const memory = region(0, MiB);
    const queue = queueAt(memory);
    const head = put(queue, memory, HEAD, { address: DATA, length: 2 * PAGE }, { sector: 8 });
    queue.ring.publish();
    const frontEnd = await connect(path, [], true);
    await frontEnd.setMemory(memory);
    const record = recordWith(head, 0);
    await frontEnd.tell(Request.setInflightFd, record.payload, [record.fd]);
    await frontEnd.start(queue, { base: 1, usedLogAddress: USED_LOG, enabled: false });
    return { frontEnd, queue, memory, record };
  }

  test('is done when the log is there, which comes after the kick, and once', async () => {
    const { frontEnd, queue, memory, record } = await prepare();
    await frontEnd.roundTrip();
    await pause(20);
    expect(queue.ring.usedIndex, 'begun before the queue was enabled').toBe(0);
    const log = logOf(PAGE);
    await frontEnd.setLog(log);
    await frontEnd.enable();
    await reap(queue, 1);
    await frontEnd.roundTrip();
    expect(log.take()).toEqual([...pagesOf(HEAD, 1), ...pagesOf(DATA, 2 * PAGE), USED_LOG / PAGE]);
    const { buf, start } = at(memory, DATA);
    expect(buf.subarray(start, start + 2 * PAGE).equals(diskContent(SIZE).subarray(PAGE, 3 * PAGE))).toBe(
      true,
    );
    expect(await frontEnd.takeBack()).toBe(1);
    // The same record and the same ring again: nothing is left to be done.
    await frontEnd.tell(Request.setInflightFd, record.payload, [record.fd]);
    await frontEnd.start(queue, { base: 0, usedLogAddress: USED_LOG });
    await frontEnd.roundTrip();
    await pause(20);
    expect(queue.ring.usedIndex).toBe(1);
    expect(await frontEnd.takeBack()).toBe(1);
  });

  test('is done when the queue is taken back before it was enabled', async () => {
    const { frontEnd, queue } = await prepare();
    expect(await frontEnd.takeBack()).toBe(1);
    expect(queue.ring.usedIndex).toBe(1);
  });

  test('stays in the record when the front end leaves before it was enabled', async () => {
    const { frontEnd, queue, memory, record } = await prepare();
    frontEnd.close();
    const next = await connect(`${dir}/v`);
    await next.setMemory(memory);
    expect(queue.ring.usedIndex).toBe(0);
    await next.tell(Request.setInflightFd, record.payload, [record.fd]);
    await next.start(queue, { base: 1 });
    await reap(queue, 1);
    expect(await next.takeBack()).toBe(1);
  });

  test('waits for the end of a drained section', async () => {
    const path = await serve('v', disk());
    const memory = region(0, MiB);
    const queue = queueAt(memory);
    const head = put(queue, memory, HEAD, { address: DATA, length: PAGE });
    queue.ring.publish();
    const frontEnd = await connect(path);
    await frontEnd.setMemory(memory);
    const record = recordWith(head, 0);
    await frontEnd.tell(Request.setInflightFd, record.payload, [record.fd]);
    await frontEnd.start(queue, { base: 1 });
    await qmp.execute('blockdev-reopen', { options: [{ 'node-name': 'n-v', ...disk() }] });
    await reap(queue, 1);
    expect(queue.ring.usedIndex).toBe(1);
  });
});

// ---- memory that changes -------------------------------------------------------------------------------------

/** Keeps requests under way for ever, none of them ending when another one does. */
function keepBusy(
  queue: RawQueue,
  home: Region,
  dataAt: (request: number) => number,
  depth: number,
): {
  /** How many have come back. */
  done: number;
  stop(): Promise<void>;
} {
  let isOver = false;
  let started = 0;
  const state = {
    done: 0,
    stop: async (): Promise<void> => {
      isOver = true;
      await running;
    },
  };
  const free = Array.from({ length: depth }, (_, i) => i);
  const slots = new Map<number, number>();
  const begin = (): void => {
    const slot = free.pop();
    if (slot === undefined) return;
    const head = home.guestAddress + RING_BYTES + slot * 64;
    slots.set(put(queue, home, head, { address: dataAt(started++), length: PAGE }), slot);
    queue.ring.publish();
  };
  const run = async (): Promise<void> => {
    for (let i = 0; i < depth; i++) {
      begin();
      await pause(7);
    }
    while (slots.size > 0) {
      queue.ring.enableCalls();
      queue.ring.reap((head) => {
        const slot = slots.get(head);
        if (slot === undefined) throw new Error(`head ${head} came back that was not under way`);
        slots.delete(head);
        free.push(slot);
        state.done++;
      });
      while (!isOver && free.length > 0) begin();
      await pause();
    }
  };
  const running = run();
  return state;
}

test.each(['SET_MEM_TABLE', 'REM_MEM_REG and ADD_MEM_REG'])(
  '%s while requests are always under way',
  async (name) => {
    const path = await serve('v', slow(40));
    const memory = region(MiB, 4 * MiB);
    const other = region(64 * MiB, MiB);
    const queue = queueAt(memory);
    const log = logOf(PAGE);
    const frontEnd = await connect(path, [], true);
    await frontEnd.setMemory(memory);
    await frontEnd.setLog(log);
    await frontEnd.start(queue, { usedLogAddress: 0 });
    const touched = new Set<number>();
    const load = keepBusy(
      queue,
      memory,
      (request) => {
        const address = 2 * MiB + (request % 500) * PAGE;
        touched.add(address / PAGE);
        return address;
      },
      8,
    );
    while (load.done < 8) await pause();
    for (let i = 0; i < 4; i++) {
      if (name === 'SET_MEM_TABLE') await frontEnd.setMemory(...(i % 2 === 0 ? [other, memory] : [memory]));
      else {
        // As for one that changes its length: the rings are gone for a moment.
        await frontEnd.removeRegion(memory);
        await frontEnd.addRegion(memory);
      }
      const { done } = load;
      while (load.done < done + 8) await pause();
    }
    await load.stop();
    await frontEnd.takeBack();
    const marks = new Set(log.take());
    expect([...touched].filter((page) => !marks.has(page))).toEqual([]);
    expect(marks.has(0)).toBe(true);
  },
);

test('requests across regions, and across the windows in which they are looked at, are read and logged', async () => {
  const path = await serve('v', disk());
  const low = region(0, MiB);
  const high = region(4 * GiB, 2 * GiB + 64 * MiB);
  const next = region(high.guestAddress + high.bytes, MiB);
  const queue = queueAt(low);
  const log = logOf(256 * 1024);
  const frontEnd = await connect(path, [indirectDescriptors], true);
  await frontEnd.setMemory(low, high, next);
  await frontEnd.setLog(log);
  await frontEnd.start(queue, { usedLogAddress: 0 });
  const content = diskContent(SIZE);
  const read = (address: number, length: number): Buffer => {
    const parts: Buffer[] = [];
    for (let done = 0; done < length; done += 512) {
      const home = [low, high, next].find(
        ({ guestAddress, bytes }) => address + done >= guestAddress && address + done < guestAddress + bytes,
      ) as Region;
      const { buf, start } = at(home, address + done);
      parts.push(Buffer.from(buf.subarray(start, start + 512)));
    }
    return Buffer.concat(parts);
  };
  for (const address of [
    high.guestAddress + GiB - 5 * 512,
    high.guestAddress + 2 * GiB - PAGE,
    high.guestAddress + 2 * GiB,
    next.guestAddress - 3 * 512,
  ]) {
    put(queue, low, RING_BYTES, { address, length: 3 * PAGE }, { sector: 8 });
    queue.ring.publish();
    await reap(queue, 1);
    await frontEnd.roundTrip();
    expect(read(address, 3 * PAGE).equals(content.subarray(PAGE, 4 * PAGE)), `at ${address}`).toBe(true);
    expect(log.take()).toEqual([0, ...pagesOf(RING_BYTES, 1), ...pagesOf(address, 3 * PAGE)]);
  }
  // A table that lies across them.
  const tableAt = high.guestAddress + GiB - 16;
  const table = Buffer.alloc(48);
  for (const [i, [address, length, flags]] of [
    [RING_BYTES, 16, 1],
    [high.guestAddress, 512, 3],
    [RING_BYTES + 16, 1, 2],
  ].entries()) {
    table.writeBigUInt64LE(BigInt(address as number), 16 * i);
    table.writeUInt32LE(length as number, 16 * i + 8);
    table.writeUInt16LE(flags as number, 16 * i + 12);
    table.writeUInt16LE((i + 1) % 3, 16 * i + 14);
  }
  table.copy(high.shared.window(0).buf, GiB - 16, 0, 16);
  table.copy(high.shared.window(1).buf, 0, 16);
  const ring = low.shared.window(0).buf;
  const head = queue.ring.put([{ address: tableAt, length: 48, write: false }]);
  ring.writeUInt16LE(4, 16 * head + 12);
  queue.ring.publish();
  await reap(queue, 1);
  expect(
    high.shared
      .window(0)
      .buf.subarray(0, 512)
      .equals(content.subarray(PAGE, PAGE + 512)),
  ).toBe(true);
});

test('another log in the middle: what ends from then on is in it', async () => {
  const path = await serve('v', slow(200));
  const memory = region(0, MiB);
  const queue = queueAt(memory);
  const [first, second] = [logOf(PAGE), logOf(2 * PAGE)];
  const frontEnd = await connect(path, [], true);
  await frontEnd.setMemory(memory);
  await frontEnd.setLog(first);
  await frontEnd.start(queue, { usedLogAddress: 16 * MiB });
  put(queue, memory, RING_BYTES, { address: RING_BYTES + PAGE, length: PAGE });
  queue.ring.publish();
  await frontEnd.roundTrip();
  await frontEnd.setLog(second);
  expect(queue.ring.usedIndex, 'the request was too fast').toBe(0);
  await reap(queue, 1);
  await frontEnd.roundTrip();
  expect(first.take().filter((page) => page !== (16 * MiB) / PAGE)).toEqual([]);
  expect(second.take()).toEqual([
    ...pagesOf(RING_BYTES, 1),
    ...pagesOf(RING_BYTES + PAGE, PAGE),
    (16 * MiB) / PAGE,
  ]);
});

test('one front end after another, with other memory at the same addresses', async () => {
  const path = await serve('v', slow(150));
  const [mine, theirs] = [region(0, MiB), region(0, MiB)];
  const first = await connect(path, [eventIndex]);
  await first.setMemory(mine);
  const queue = queueAt(mine, true);
  await first.start(queue);
  for (let i = 0; i < 4; i++)
    put(queue, mine, RING_BYTES + i * 64, { address: MiB / 2 + i * PAGE, length: PAGE });
  queue.ring.publish();
  // The kick the device wants next tells that it has taken them all.
  const nextKickAt = queueLayout(QUEUE_SIZE).used + 4 + 8 * QUEUE_SIZE;
  while (mine.shared.window(0).buf.readUInt16LE(nextKickAt) !== 4) await pause();
  first.close();
  theirs.shared.window(0).buf.fill(0x77, RING_BYTES);
  const second = await connect(path);
  await second.setMemory(theirs);
  const next = queueAt(theirs);
  await second.start(next);
  put(next, theirs, RING_BYTES, { address: RING_BYTES + PAGE, length: PAGE });
  next.ring.publish();
  await reap(next, 1);
  expect(await second.takeBack()).toBe(1);
  const { buf } = theirs.shared.window(0);
  expect(buf.subarray(RING_BYTES + 64, RING_BYTES + PAGE).every((byte) => byte === 0x77)).toBe(true);
  expect(buf.subarray(RING_BYTES + 2 * PAGE).every((byte) => byte === 0x77)).toBe(true);
  // What the first one's requests did, they did to its memory, and they were given back there.
  expect(queue.ring.usedIndex).toBe(4);
});
