/**
 * A "machine" moves from one vhost-user-blk export to another, as a virtual machine monitor does it: its memory is copied
 * again and again, by the log, while requests run; then the rings are stopped, the rest is copied, and it goes on at the other
 * export. No page may differ, no request be lost or come back twice. A real one is in test/vm/migration.test.ts.
 */

import { rmSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { closeFd } from '../../src/aio/ffi.ts';
import { queueLayout } from '../../src/virtio/driver-queue.ts';
import { Feature } from '../../src/virtio/ring.ts';
import { encodeU64, Request } from '../../src/virtio/vhost-user/messages.ts';
import { makeScratchDir, type RunningDaemon, startWithMonitor } from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { createRandom } from './random.ts';
import {
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
const SIZE = 8 * 1024 * 1024;
const { eventIndex } = Feature;

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

const disk = (): object => ({ driver: 'file', filename: `${dir}/disk` });
const pause = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1));

function region(bytes: number): Region {
  const made = createRegion(0, bytes);
  ends.push(() => dropRegion(made));
  return made;
}

const SLOTS = 16;
const SLOT_BYTES = 16 * PAGE;
/** The used ring is longer than a page. */
const QUEUE_SIZE = 1024;
const { used: USED_AT, bytes: RING_BYTES } = queueLayout(QUEUE_SIZE);

interface Reading {
  readonly slot: number;
  readonly sector: number;
  readonly bytes: number;
  readonly address: number;
}

/** What a guest does: reads at random, compares all, changes nothing else. Its own state is here, not in its memory. */
class Reader {
  readonly #content = diskContent(SIZE);
  readonly #random: (below: number) => number;
  readonly #readings = new Map<number, Reading>();
  readonly #free = Array.from({ length: SLOTS }, (_, i) => i);
  done = 0;

  constructor(seed: number) {
    this.#random = createRandom(seed);
  }

  static headOf = (slot: number): number => RING_BYTES + slot * 64;
  static dataOf = (slot: number): number => RING_BYTES + PAGE + slot * SLOT_BYTES;

  /** Takes what has come back and puts as many requests as there is room for. */
  step(queue: RawQueue, memory: Region): void {
    queue.ring.enableCalls();
    queue.ring.reap((head) => this.#check(head, memory));
    while (this.#free.length > 0) {
      const slot = this.#free.pop() as number;
      const bytes = 512 * (1 + this.#random(SLOT_BYTES / 512 - 8));
      const sector = this.#random((SIZE - bytes) / 512);
      // Anywhere in the slot, also across pages; the status behind it.
      const address = Reader.dataOf(slot) + 512 * this.#random((SLOT_BYTES - bytes) / 512);
      const status = address + bytes;
      memory.shared.window(0).buf[status] = 0xff;
      const data = { address, length: bytes };
      const head = put(queue, memory, Reader.headOf(slot), data, { sector, status });
      this.#readings.set(head, { slot, sector, bytes, address });
    }
    queue.ring.publish();
  }

  #check(head: number, memory: Region): void {
    const reading = this.#readings.get(head);
    if (reading === undefined) throw new Error(`head ${head} came back that was not under way`);
    const { slot, sector, bytes, address } = reading;
    this.#readings.delete(head);
    this.#free.push(slot);
    const { buf } = memory.shared.window(0);
    if (buf[address + bytes] !== 0) throw new Error('a read failed');
    const wanted = this.#content.subarray(sector * 512, sector * 512 + bytes);
    if (!buf.subarray(address, address + bytes).equals(wanted))
      throw new Error(`wrong data of sector ${sector}`);
    this.done++;
  }
}

describe.each([
  ['from the page cache', {}, []],
  ['from the disk, with event indices', { cache: { direct: true } }, [eventIndex]],
  ['slowed down', null, [eventIndex]],
] as const)('a machine moves while it reads %s', (_name, options, features) => {
  test('no page is missing, no request is lost or done twice', { timeout: 60_000 }, async () => {
    if (options !== null) await qmp.execute('blockdev-add', { 'node-name': 'd', ...disk(), ...options });
    else {
      await qmp.execute('object-add', {
        'qom-type': 'throttle-group',
        id: 'g',
        limits: { 'iops-total': 3000, 'iops-total-max': 3000 },
      });
      await qmp.execute('blockdev-add', {
        driver: 'throttle',
        'node-name': 'd',
        'throttle-group': 'g',
        file: disk(),
      });
    }
    const withEvents = (features as readonly number[]).includes(eventIndex);
    const bytes = RING_BYTES + PAGE + SLOTS * SLOT_BYTES;
    // The rest of the rings, and the headers, are written by the guest itself: whoever emulates it knows of them.
    const guestPages = new Set([...pagesOf(0, USED_AT), ...pagesOf(Reader.headOf(0), SLOTS * 64)]);
    const reader = new Reader(5);
    const memory = region(bytes);
    const target = region(bytes);
    const queue = createQueue(memory, 0, QUEUE_SIZE, withEvents);
    ends.push(() => closeFd(queue.kickFd));
    const window = ({ shared }: Region, page: number): Buffer =>
      shared.window(0).buf.subarray(page * PAGE, (page + 1) * PAGE);
    const copy = (page: number): void => void window(memory, page).copy(window(target, page));
    const pages = Array.from({ length: bytes / PAGE }, (_, page) => page);
    let base = 0;
    for (let move = 0; move < 6; move++) {
      const id = `e${move}`;
      const addr = { type: 'unix', path: `${dir}/${id}` };
      await qmp.execute('block-export-add', { type: 'vhost-user-blk', id, 'node-name': 'd', addr });
      const frontEnd = await RawFrontEnd.connect(addr.path, features);
      ends.push(() => frontEnd.close());
      await frontEnd.setMemory(memory);
      await frontEnd.start(queue, { base });
      // What came to the ring while nobody looked.
      queue.ring.kick();
      const run = async (requests: number): Promise<void> => {
        for (const end = reader.done + requests; reader.done < end; await pause()) reader.step(queue, memory);
      };
      await run(100);
      // The first pass: all of it.
      const log = new SharedLog(PAGE);
      ends.push(() => log.close());
      await frontEnd.setLog(log);
      await frontEnd.setFeatures(features, true);
      await frontEnd.setAddresses(queue, USED_AT);
      for (const page of pages) copy(page);
      for (let pass = 0; pass < 5; pass++) {
        for (const page of log.take()) copy(page);
        await run(40);
      }
      // The machine stops, with requests under way.
      reader.step(queue, memory);
      frontEnd.send(Request.setStatus, encodeU64(0));
      base = await frontEnd.takeBack();
      expect(queue.ring.usedIndex).toBe(base);
      for (const page of log.take()) copy(page);
      for (const page of guestPages) copy(page);
      const differing = pages.filter((page) => !window(memory, page).equals(window(target, page)));
      expect(differing, `in move ${move}; the used ring begins in page ${USED_AT / PAGE}`).toEqual([]);
      // The machine is another one now, in the memory that was sent: nobody writes to it but its own disk.
      memory.shared.window(0).buf.fill(0xdb);
      await qmp.execute('block-export-del', { id });
      expect(memory.shared.window(0).buf.every((byte) => byte === 0xdb)).toBe(true);
      target.shared.window(0).buf.copy(memory.shared.window(0).buf);
    }
  });
});
