/**
 * The log of guest memory that a vhost-user-blk export has written to, page by page, as a front end needs it that moves
 * its guest to another host. A machine that really moves is in test/vm.
 */

import { rmSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { clearEventFd, createEventFd } from '../../src/aio/descriptors.ts';
import { closeFd } from '../../src/aio/ffi.ts';
import { createMemoryFile, mapSharedMemory, type SharedMemory } from '../../src/aio/shared-memory.ts';
import { Feature, featureSet } from '../../src/virtio/ring.ts';
import { DRIVER_PROTOCOL_FEATURES, FrontEnd } from '../../src/virtio/vhost-user/front-end.ts';
import {
  encodeU64,
  encodeVringState,
  Flag,
  ProtocolFeature,
  Request,
} from '../../src/virtio/vhost-user/messages.ts';
import { limitMs } from '../patience.ts';
import { type DaemonKind, makeScratchDir, type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { requirePeer } from '../peers/requires.ts';

const PAGE = 4096;
const DATA_BYTES = 1024 * 1024;
const LOG_BYTES = 65536;
/** Where the log has the used ring: no memory of the guest's needs to be there. */
const USED_LOG_ADDRESS = 0x40000000;
const FEATURES = [Feature.indirectDescriptors];

let dir: string;
let daemon: RunningDaemon;
let qmp: QmpClient;
let frontEnd: FrontEnd;
let log: SharedMemory;
let logFd: number;
let eventFd: number;

beforeEach(() => {
  dir = makeScratchDir();
  writeFileSync(`${dir}/disk`, Buffer.alloc(DATA_BYTES, 0x5a));
  logFd = createMemoryFile('log', LOG_BYTES);
  log = mapSharedMemory(logFd, 0, LOG_BYTES) as SharedMemory;
  eventFd = createEventFd();
});

afterEach(async () => {
  frontEnd?.close();
  log.unmap();
  closeFd(logFd);
  closeFd(eventFd);
  qmp.close();
  await daemon.stop();
  rmSync(dir, { recursive: true, force: true });
});

async function start(kind: DaemonKind, node: object): Promise<void> {
  daemon = await startDaemon(kind, { dir });
  qmp = await daemon.connect();
  await qmp.negotiate();
  await qmp.execute('blockdev-add', { 'node-name': 'n', ...node });
  await qmp.execute('block-export-add', {
    type: 'vhost-user-blk',
    id: 'v',
    'node-name': 'n',
    writable: true,
    addr: { type: 'unix', path: `${dir}/v` },
  });
  frontEnd = await FrontEnd.open({
    path: `${dir}/v`,
    queues: 1,
    queueSize: 64,
    dataBytes: DATA_BYTES,
    features: FEATURES,
    protocolFeatures: [...DRIVER_PROTOCOL_FEATURES, ProtocolFeature.logShmFd, ProtocolFeature.status],
    reconnect: false,
    called: () => undefined,
    ringsRenewed: () => undefined,
    connected: () => undefined,
    lost: () => undefined,
    configChanged: () => undefined,
  });
}

async function shareLog(bytes = LOG_BYTES): Promise<void> {
  const reply = await frontEnd.call(Request.setLogBase, Buffer.concat([encodeU64(bytes), encodeU64(0)]), [
    logFd,
  ]);
  expect(reply.flags & Flag.reply).not.toBe(0);
  await frontEnd.tell(Request.setLogFd, Buffer.alloc(0), [eventFd]);
}

async function setLogging(isOn: boolean): Promise<void> {
  const features = [...FEATURES, Feature.version1, Feature.protocolFeatures];
  await frontEnd.tell(
    Request.setFeatures,
    encodeU64(featureSet(...features, ...(isOn ? [Feature.logAll] : []))),
  );
  await frontEnd.tell(Request.setVringAddr, frontEnd.vringAddresses(0, isOn ? USED_LOG_ADDRESS : null));
}

/** Pages marked since the last call. */
function takeMarks(): number[] {
  const { buf } = log.window(0);
  const pages: number[] = [];
  for (let i = 0; i < LOG_BYTES * 8; i++) if ((buf[i >> 3]! & (1 << (i & 7))) !== 0) pages.push(i);
  buf.fill(0);
  return pages;
}

/** Puts a request into the ring: its header, data and status at `at`, at + PAGE and at + 8 * PAGE of the data. */
function put(type: number, at: number, bytes: number): void {
  const base = frontEnd.dataAddress + at;
  frontEnd.memory.buf.fill(0, base, base + 16);
  frontEnd.memory.buf.writeUInt32LE(type, base);
  const queue = frontEnd.queues[0]!;
  queue.put([
    { address: base, length: 16, write: false },
    { address: base + PAGE, length: bytes, write: type === 0 },
    { address: base + 8 * PAGE, length: 1, write: true },
  ]);
  queue.publish();
}

async function wait(): Promise<void> {
  for (let done = 0; done === 0; ) {
    await new Promise((resolve) => setTimeout(resolve, 2));
    done = frontEnd.queues[0]!.reap(() => undefined);
  }
}

const page = (at: number): number => (frontEnd.dataAddress + at) / PAGE;
const USED_PAGE = USED_LOG_ADDRESS / PAGE;

describe.each(['qblockd', 'qemu-storage-daemon'] as const)('%s', (kind) => {
  test('marks the pages that requests and rings have written to, while it is asked to', async (context) => {
    if (kind === 'qemu-storage-daemon') requirePeer(context, 'qemu-storage-daemon');
    await start(kind, { driver: 'file', filename: `${dir}/disk` });
    put(0, 0, 2 * PAGE);
    await wait();
    await shareLog();
    put(0, 0, 2 * PAGE);
    await wait();
    expect(takeMarks()).toEqual([]);
    await setLogging(true);
    put(0, 0, 2 * PAGE);
    await wait();
    await frontEnd.readConfig(60);
    expect(takeMarks()).toEqual([page(PAGE), page(2 * PAGE), page(8 * PAGE), USED_PAGE]);
    expect(clearEventFd(eventFd)).toBe(8);
    // A write leaves its data as they are.
    put(1, 65536, PAGE);
    await wait();
    await frontEnd.readConfig(60);
    expect(takeMarks()).toEqual([page(65536 + 8 * PAGE), USED_PAGE]);
    await setLogging(false);
    put(0, 0, PAGE);
    await wait();
    await frontEnd.readConfig(60);
    expect(takeMarks()).toEqual([]);
  });
});

// The original gives the queue back with the request still under way.
test('marks what was begun before it was asked to', async () => {
  await start('qblockd', {
    driver: 'null-co',
    size: DATA_BYTES,
    'read-zeroes': true,
    'latency-ns': limitMs(300) * 1e6,
  });
  await shareLog();
  put(0, 0, PAGE);
  await frontEnd.readConfig(60);
  await setLogging(true);
  expect(frontEnd.queues[0]!.usedIndex, 'the request was too fast').toBe(0);
  // The queue is taken back, as it is at the end of a migration: everything is marked by then.
  await frontEnd.call(Request.getVringBase, encodeVringState(0, 0));
  expect(frontEnd.queues[0]!.usedIndex).toBe(1);
  expect(takeMarks()).toEqual([page(PAGE), page(8 * PAGE), USED_PAGE]);
});

test('a paused machine finds its rings where they were', async () => {
  await start('qblockd', { driver: 'file', filename: `${dir}/disk` });
  for (let i = 0; i < 5; i++) {
    put(0, 0, PAGE);
    await wait();
  }
  // As QEMU says it: first that the device has no status any more, then it asks.
  await frontEnd.tell(Request.setStatus, encodeU64(0));
  const { payload } = await frontEnd.call(Request.getVringBase, encodeVringState(0, 0));
  expect(payload.readUInt32LE(4)).toBe(5);
});

test('a log that is too short, odd or missing hurts nobody', async () => {
  await start('qblockd', { driver: 'file', filename: `${dir}/disk` });
  await shareLog(1);
  await setLogging(true);
  put(0, 65536, PAGE);
  await wait();
  await frontEnd.readConfig(60);
  expect(takeMarks()).toEqual([]);
  await frontEnd
    .call(Request.setLogBase, Buffer.concat([encodeU64(2 * LOG_BYTES), encodeU64(0)]), [logFd])
    .catch(() => undefined);
  expect(await qmp.execute('query-block-exports')).toHaveLength(1);
});
