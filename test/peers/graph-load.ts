/**
 * Random changes of a graph whose four exports are under load: what graph-load.test.ts runs for a while, and
 * `npm run test:graph` in full.
 *
 * Under each export there is a raw node that stays; its `file` child is what changes: filters are put in between and
 * taken out, overlays are put on top, chains are shortened by block-stream, options are changed, and now and then something
 * is asked for that must be refused and change nothing. Meanwhile clients write blocks and read what they wrote.
 */

import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { createRandom, type Random } from '../drivers/qcow2/random.ts';
import { DiskClient } from '../nbd/disk-client.ts';
import { RawClient } from '../nbd/raw-client.ts';
import type { RunningDaemon } from './daemons.ts';
import type { QmpClient } from './qmp-client.ts';

export const DISK_BYTES = 16 << 20;
const BLOCK = 4096;
/** Blocks that the checked load uses, at the end of the disk; fio has the rest. */
export const MODEL_BLOCKS = 512;
/** Requests of a checked load under way at once. */
const DEPTH = 4;
/** Longer chains are shortened first. */
const MAX_OVERLAYS = 4;
const MAX_FILTERS = 3;

export const DISKS = [0, 1, 2, 3];

// ---- the load ------------------------------------------------------------------------------------------------

/** Clients of one export; each block holds the number of its last write. */
export class CheckedLoad {
  readonly #written = new Map<number, number>();
  readonly #random: Random;
  #stopped = false;
  #done: Promise<void> = Promise.resolve();
  requests = 0;
  slowestMs = 0;

  constructor(seed: number) {
    this.#random = createRandom(seed);
  }

  async start(socket: string, name: string): Promise<void> {
    const client = await DiskClient.enter(await RawClient.connect(socket), name, 'structured');
    // Each worker has every DEPTH-th block, so that it knows what is in them.
    const workers = Array.from({ length: DEPTH }, (_, index) => this.#work(client, index));
    this.#done = Promise.all(workers).then(() => client.leave());
    this.#done.catch(() => undefined);
  }

  /** Ends the load; throws what went wrong. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#done;
  }

  /** What the blocks hold, in order. */
  content(): Buffer {
    return Buffer.concat(
      Array.from({ length: MODEL_BLOCKS }, (_, block) => blockOf(block, this.#written.get(block) ?? 0)),
    );
  }

  async #work(client: DiskClient, index: number): Promise<void> {
    const first = DISK_BYTES / BLOCK - MODEL_BLOCKS;
    for (let number = 1; !this.#stopped; number++) {
      const block = index + DEPTH * this.#random.below(MODEL_BLOCKS / DEPTH);
      const offset = (first + block) * BLOCK;
      const startMs = performance.now();
      if (this.#random.below(2) === 0) {
        await client.write(offset, blockOf(block, number));
        this.#written.set(block, number);
      } else {
        const expected = blockOf(block, this.#written.get(block) ?? 0);
        const found = await client.read(offset, BLOCK);
        if (!found.equals(expected)) {
          throw new Error(
            `block ${block}: write ${expected.readUInt32LE(4)} expected, ${found.readUInt32LE(4)} found`,
          );
        }
      }
      this.slowestMs = Math.max(this.slowestMs, performance.now() - startMs);
      this.requests++;
    }
  }
}

function blockOf(block: number, number: number): Buffer {
  const content = Buffer.alloc(BLOCK);
  if (number > 0) {
    for (let at = 0; at < BLOCK; at += 8) {
      content.writeUInt32LE(block, at);
      content.writeUInt32LE(number, at + 4);
    }
  }
  return content;
}

// ---- the changes ---------------------------------------------------------------------------------------------

interface Disk {
  readonly index: number;
  /** Filters, uppermost first. */
  readonly filters: string[];
  /** Images, uppermost first. */
  readonly images: string[];
}

export class GraphChanger {
  readonly #qmp: QmpClient;
  readonly #dir: string;
  readonly #random: Random;
  readonly #disks: Disk[] = DISKS.map((index) => ({ index, filters: [], images: [`base${index}`] }));
  readonly counts: Record<string, number> = {};
  #names = 0;

  constructor(daemon: RunningDaemon, qmp: QmpClient, seed: number) {
    this.#qmp = qmp;
    this.#dir = daemon.dir;
    this.#random = createRandom(seed);
  }

  /** Makes images and nodes of all disks, and exports them as disk0 to disk3. */
  async setUp(): Promise<void> {
    await this.#qmp.execute('object-add', { 'qom-type': 'throttle-group', id: 'group', limits: {} });
    await this.#qmp.execute('nbd-server-start', {
      addr: { type: 'unix', data: { path: `${this.#dir}/nbd.sock` } },
    });
    for (const index of DISKS) {
      await this.#addImage(`base${index}`);
      await this.#qmp.execute('blockdev-add', {
        driver: 'raw',
        'node-name': `top${index}`,
        file: `base${index}`,
      });
      await this.#qmp.execute('block-export-add', {
        type: 'nbd',
        id: `disk${index}`,
        'node-name': `top${index}`,
        name: `disk${index}`,
        writable: true,
      });
    }
  }

  /** Paths of the images whose chains the exports showed at last. */
  images(): readonly string[] {
    return this.#disks.map(({ images }) => path.join(this.#dir, images[0]!));
  }

  async change(): Promise<void> {
    const disk = this.#random.pick(this.#disks);
    const kinds: readonly (readonly [string, () => Promise<void>])[] = [
      ['filter in', () => this.#filterIn(disk)],
      ['filter in', () => this.#filterIn(disk)],
      ['filter out', () => this.#filterOut(disk)],
      ['filter out', () => this.#filterOut(disk)],
      ['snapshot', () => this.#snapshot(disk)],
      ['stream', () => this.#stream(disk)],
      ['reopen', () => this.#reopenImage(disk)],
      ['add and delete', () => this.#addAndDelete()],
      ['refused', () => this.#refused(disk)],
    ];
    const [kind, run] = this.#random.pick(kinds);
    this.counts[kind] = (this.counts[kind] ?? 0) + 1;
    await run();
  }

  #newName(kind: string): string {
    return `${kind}${this.#names++}`;
  }

  async #addImage(name: string, backing: string | null = null): Promise<void> {
    const file = path.join(this.#dir, name);
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', file, String(DISK_BYTES)]);
    if (backing !== null) {
      execFileSync('qemu-img', ['rebase', '-u', '-F', 'qcow2', '-b', path.join(this.#dir, backing), file]);
    }
    await this.#qmp.execute('blockdev-add', {
      driver: 'qcow2',
      'node-name': name,
      backing: null,
      file: { driver: 'file', filename: file },
    });
  }

  /** What the raw node on top has as its file. */
  #fileOf({ filters, images }: Disk): string {
    return filters[0] ?? images[0]!;
  }

  async #reopenTop(disk: Disk): Promise<void> {
    await this.#qmp.execute('blockdev-reopen', {
      options: [{ driver: 'raw', 'node-name': `top${disk.index}`, file: this.#fileOf(disk) }],
    });
  }

  async #filterIn(disk: Disk): Promise<void> {
    if (disk.filters.length >= MAX_FILTERS) return this.#filterOut(disk);
    const name = this.#newName('filter');
    const below = this.#fileOf(disk);
    const options = this.#random.pick([
      { driver: 'throttle', 'throttle-group': 'group', file: below },
      { driver: 'copy-on-read', file: below },
      { driver: 'blkdebug', image: below },
      { driver: 'raw', file: below },
    ]);
    await this.#qmp.execute('blockdev-add', { ...options, 'node-name': name });
    disk.filters.unshift(name);
    await this.#reopenTop(disk);
  }

  async #filterOut(disk: Disk): Promise<void> {
    const name = disk.filters.shift();
    if (name === undefined) return;
    await this.#reopenTop(disk);
    await this.#qmp.execute('blockdev-del', { 'node-name': name });
  }

  async #snapshot(disk: Disk): Promise<void> {
    if (disk.images.length > MAX_OVERLAYS) return this.#stream(disk);
    const name = this.#newName('image');
    await this.#addImage(name, disk.images[0]!);
    await this.#qmp.execute('blockdev-snapshot', { node: disk.images[0], overlay: name });
    disk.images.unshift(name);
  }

  /** Everything goes into the uppermost image; the others are deleted. */
  async #stream(disk: Disk): Promise<void> {
    const [top, ...below] = disk.images;
    if (top === undefined || below.length === 0) return;
    const id = this.#newName('stream');
    await this.#qmp.execute('block-stream', { 'job-id': id, device: top, 'auto-dismiss': false });
    for (;;) {
      const jobs = (await this.#qmp.execute('query-jobs')) as {
        id: string;
        status: string;
        error?: string;
      }[];
      const job = jobs.find((each) => each.id === id);
      if (job?.error !== undefined) throw new Error(`block-stream: ${job.error}`);
      if (job?.status === 'concluded') break;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await this.#qmp.execute('job-dismiss', { id });
    disk.images.length = 1;
    for (const name of below) await this.#qmp.execute('blockdev-del', { 'node-name': name });
  }

  async #reopenImage(disk: Disk): Promise<void> {
    const [name, below = null] = disk.images;
    await this.#qmp.execute('blockdev-reopen', {
      options: [
        {
          driver: 'qcow2',
          'node-name': name,
          backing: below,
          'detect-zeroes': this.#random.pick(['off', 'on']),
          'lazy-refcounts': this.#random.pick([true, false]),
          'cache-size': this.#random.pick([1 << 20, 2 << 20]),
          file: { driver: 'file', filename: path.join(this.#dir, name!) },
        },
      ],
    });
  }

  async #addAndDelete(): Promise<void> {
    const name = this.#newName('idle');
    await this.#qmp.execute('blockdev-add', {
      driver: 'raw',
      'node-name': name,
      file: { driver: 'null-co', size: 1 << 20 },
    });
    await this.#qmp.execute('blockdev-del', { 'node-name': name });
  }

  /** Asks for something impossible. */
  async #refused(disk: Disk): Promise<void> {
    const image = disk.images[0]!;
    const [command, args] = this.#random.pick<readonly [string, object]>([
      ['blockdev-del', { 'node-name': image }],
      ['blockdev-del', { 'node-name': `top${disk.index}` }],
      ['blockdev-snapshot', { node: image, overlay: image }],
      ['blockdev-snapshot', { node: image, overlay: `top${disk.index}` }],
      ['blockdev-add', { driver: 'null-co', 'node-name': image }],
      [
        'blockdev-reopen',
        { options: [{ driver: 'raw', 'node-name': `top${disk.index}`, file: `top${disk.index}` }] },
      ],
      [
        'transaction',
        {
          actions: [
            { type: 'block-dirty-bitmap-add', data: { node: image, name: 'b' } },
            { type: 'abort', data: {} },
          ],
        },
      ],
    ]);
    let refused = false;
    try {
      await this.#qmp.execute(command, args);
    } catch {
      refused = true;
    }
    if (!refused) throw new Error(`${command} was not refused: ${JSON.stringify(args)}`);
  }
}
