/**
 * The FUSE export under what file systems are tested with: random system calls against a model (holes, zeroes, growth and
 * cuts included), kills, several writers that grow one file, a full or failing disk below, ends while it is used, a place
 * that is taken. What people do with the file is in fuse.test.ts.
 */

import { spawn, spawnSync } from 'node:child_process';
import {
  closeSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { fallocate, lseek } from '../../src/aio/ffi.ts';
import { E } from '../../src/errors/errno.ts';
import {
  makeScratchDir,
  type RunningDaemon,
  repositoryRoot,
  startDaemon,
  startWithMonitor,
} from '../peers/daemons.ts';
import type { QmpClient } from '../peers/qmp-client.ts';
import { requirePeer } from '../peers/requires.ts';
import { createRandom } from './random.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const GROWN_MAX = 3 * MiB;
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const FALLOC_FL_ZERO_RANGE = 16;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
/** Other calls than the usual ones. */
const SEED = Number(process.env.FUSE_SEED ?? 0);
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');

let dir: string;
let daemon: RunningDaemon;
let qmp: QmpClient;

async function start(): Promise<void> {
  ({ daemon, qmp } = await startWithMonitor(dir));
}

async function kill(): Promise<void> {
  qmp.close();
  daemon.process.kill('SIGKILL');
  await daemon.exited;
}

async function serve(node: object, options: object = {}): Promise<void> {
  await qmp.execute('blockdev-add', { 'node-name': 'd', ...node });
  await exportNode(options);
}

async function exportNode(options: object = {}): Promise<void> {
  const place = { mountpoint: `${dir}/m`, writable: true };
  await qmp.execute('block-export-add', { type: 'fuse', id: 'e', 'node-name': 'd', ...place, ...options });
}

const gone = async (): Promise<void> => {
  while (((await qmp.execute('query-block-exports')) as unknown[]).length > 0);
};

/** Runs a shell script in the scratch folder without holding up this process; its status and what it printed. */
function run(script: string): Promise<{ readonly status: number | null; readonly text: string }> {
  const child = spawn('sh', ['-e', '-c', script], { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk: Buffer) => (text += chunk));
  return new Promise((resolve) => child.on('close', (status) => resolve({ status, text })));
}

beforeEach(async () => {
  dir = makeScratchDir();
  writeFileSync(`${dir}/m`, '');
  await start();
});

afterEach(async () => {
  qmp.close();
  await daemon.stop();
  for (const place of ['m', 'small']) spawnSync('umount', ['-l', `${dir}/${place}`]);
  rmSync(dir, { recursive: true, force: true });
});

// ---- random calls --------------------------------------------------------------------------------------------

/** Disks are made of whole sectors. */
const upToSector = (bytes: number): number => Math.ceil(bytes / 512) * 512;

/** A file and what it must hold. */
class Modelled {
  readonly #name: string;
  readonly #random: (below: number) => number;
  readonly #bytes = Buffer.alloc(GROWN_MAX);
  #length: number;
  #fd: number;

  constructor(name: string, length: number, seed: number) {
    this.#name = name;
    this.#length = length;
    this.#random = createRandom(seed);
    this.#fd = openSync(name, 'r+');
  }

  close(): void {
    try {
      closeSync(this.#fd);
    } catch {
      // Its server was killed.
    }
  }

  /** The file is another one now, which must hold the same. */
  reopen(): void {
    this.#fd = openSync(this.#name, 'r+');
    this.#compareAll();
  }

  sync(): void {
    fsyncSync(this.#fd);
  }

  #compareAll(): void {
    expect(fstatSync(this.#fd).size).toBe(this.#length);
    this.#compare(0, this.#length);
  }

  #compare(offset: number, length: number): void {
    const read = Buffer.alloc(length, 0xee);
    const wanted = this.#bytes.subarray(offset, Math.max(offset, Math.min(offset + length, this.#length)));
    expect(readSync(this.#fd, read, 0, length, offset)).toBe(wanted.length);
    if (!read.subarray(0, wanted.length).equals(wanted)) {
      const at = wanted.findIndex((byte, i) => byte !== read[i]);
      throw new Error(`byte ${offset + at} of ${this.#length} is ${read[at]} instead of ${wanted[at]}`);
    }
  }

  /** One call of any kind. */
  step(): void {
    const random = this.#random;
    const offset = random(this.#length + 1);
    const length = 1 + random(random(4) === 0 ? 300 * KiB : 9 * KiB);
    const within = Math.min(length, this.#length - offset);
    const bytes = this.#bytes;
    switch (random(12)) {
      case 0:
      case 1:
      case 2: {
        // Also behind the end, where a qcow2 image grows by whole sectors only.
        const fits = offset + length > this.#length ? upToSector(offset + length) - offset : length;
        if (offset + fits > GROWN_MAX) return;
        const data = Buffer.alloc(fits, 1 + random(255));
        expect(writeSync(this.#fd, data, 0, fits, offset)).toBe(fits);
        data.copy(bytes, offset);
        this.#length = upToSector(Math.max(this.#length, offset + fits));
        return;
      }
      case 3:
        this.#allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
        bytes.fill(0, offset, offset + within);
        return;
      case 4:
        this.#allocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length);
        bytes.fill(0, offset, offset + within);
        return;
      case 5: {
        const fits = Math.min(length, GROWN_MAX - offset);
        if (fits === 0) return;
        this.#allocate(FALLOC_FL_ZERO_RANGE, offset, upToSector(offset + fits) - offset);
        bytes.fill(0, offset, upToSector(offset + fits));
        this.#length = Math.max(this.#length, upToSector(offset + fits));
        return;
      }
      case 6: {
        // Cut off, or longer; what is cut off is gone.
        const to = upToSector(
          random(3) === 0 ? offset : Math.min(GROWN_MAX, this.#length + random(64 * KiB)),
        );
        ftruncateSync(this.#fd, to);
        bytes.fill(0, Math.min(to, this.#length));
        this.#length = to;
        return;
      }
      case 7: {
        const from = upToSector(this.#length + random(8 * KiB));
        if (upToSector(from + length) > GROWN_MAX) return;
        this.#allocate(0, from, upToSector(length));
        this.#length = from + upToSector(length);
        return;
      }
      case 8:
        this.sync();
        return;
      case 9:
        this.#seek();
        return;
      default:
        this.#compare(offset, length);
    }
  }

  #allocate(mode: number, offset: number, length: number): void {
    expect(fallocate(this.#fd, mode, offset, length), `mode ${mode} ${offset} ${length}`).toBe(0);
  }

  /** What is called a hole reads as zeroes, and the parts are in order. */
  #seek(): void {
    for (let at = 0; at < this.#length; ) {
      const data = lseek(this.#fd, at, SEEK_DATA);
      const end = data === -E.ENXIO ? this.#length : data;
      expect(end).toBeGreaterThanOrEqual(at);
      expect(
        this.#bytes.subarray(at, end).every((byte) => byte === 0),
        `a hole at ${at} that is none`,
      ).toBe(true);
      if (end === this.#length) return;
      const hole = lseek(this.#fd, end, SEEK_HOLE);
      expect(hole).toBeGreaterThan(end);
      at = hole;
    }
  }
}

describe('random calls leave what a model says', () => {
  test.for([
    ['a file', false, 1],
    ['qcow2 with small clusters', true, 3],
    ['qcow2 with small clusters, with snapshots', true, 4],
  ] as const)('%s', { timeout: 60_000 }, async ([name, isQcow2, seed], context) => {
    requirePeer(context, 'fuse');
    const length = 1 * MiB + 512;
    if (isQcow2)
      spawnSync(img, ['create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', `${dir}/disk`, String(length)]);
    else writeFileSync(`${dir}/disk`, Buffer.alloc(length));
    const file = { driver: 'file', filename: `${dir}/disk`, discard: 'unmap' };
    const node = isQcow2 ? { driver: 'qcow2', file, discard: 'unmap' } : file;
    await serve(node, { growable: true });
    const model = new Modelled(`${dir}/m`, length, SEED + seed);
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < 100; i++) model.step();
      if (name.endsWith('snapshots') && round < 2)
        await qmp
          .execute('blockdev-snapshot-internal-sync', { device: 'd', name: `s${round}` })
          .catch(() => undefined);
      // A file keeps everything when the daemon is killed; an image's metadata what was flushed.
      if (isQcow2) model.sync();
      await kill();
      model.close();
      await start();
      await serve(node, { growable: true });
      model.reopen();
    }
    model.close();
    await qmp.execute('block-export-del', { id: 'e' });
    await gone();
    await qmp.execute('blockdev-del', { 'node-name': 'd' });
    // A kill may leave clusters behind that nobody uses (3), but nothing wrong.
    if (isQcow2) expect([0, 3]).toContain(spawnSync(img, ['check', `${dir}/disk`]).status);
  });
});

test('several grow one file at the same time, each in places of its own', async (context) => {
  requirePeer(context, 'fuse');
  writeFileSync(`${dir}/disk`, '');
  await serve({ driver: 'file', filename: `${dir}/disk` }, { growable: true });
  const places = Array.from({ length: 48 }, (_, i) => (i * 29) % 48);
  const writer = (mine: readonly number[]): Promise<{ status: number | null; text: string }> =>
    run(
      mine
        .map(
          (at) =>
            `head -c 65536 /dev/zero | tr '\\0' '\\${(at + 64).toString(8)}' | dd of=m bs=64k seek=${at} conv=notrunc status=none iflag=fullblock`,
        )
        .join('\n'),
    );
  const all = await Promise.all([0, 1, 2, 3].map((part) => writer(places.filter((_, i) => i % 4 === part))));
  expect(all).toEqual(Array(4).fill({ status: 0, text: '' }));
  const held = readFileSync(`${dir}/m`);
  expect(held.length).toBe(48 * 65536);
  for (const at of places)
    expect(held.subarray(at * 65536, (at + 1) * 65536).every((byte) => byte === at + 64)).toBe(true);
});

describe('a disk below that fails', () => {
  test('says that it is full, and takes the rest when there is room again', async (context) => {
    requirePeer(context, 'fuse', 'qemu-img');
    const small = await run('mkdir small; mount -t tmpfs -o size=2M none small');
    if (small.status !== 0) context.skip('no file system of its own to be had');
    spawnSync(img, ['create', '-q', '-f', 'qcow2', `${dir}/small/disk`, '16M']);
    await serve({ driver: 'qcow2', file: { driver: 'file', filename: `${dir}/small/disk` } });
    const fd = openSync(`${dir}/m`, 'r+');
    const data = Buffer.alloc(64 * KiB, 7);
    let at = 0;
    const fill = (): unknown => {
      try {
        for (; at < 8 * MiB; at += data.length) writeSync(fd, data, 0, data.length, at);
        return null;
      } catch (error) {
        return error;
      }
    };
    expect(fill()).toMatchObject({ code: 'ENOSPC' });
    const reached = at;
    expect(reached).toBeGreaterThan(512 * KiB);
    const read = Buffer.alloc(reached);
    readSync(fd, read, 0, reached, 0);
    expect(read.every((byte) => byte === 7)).toBe(true);
    expect((await run('mount -o remount,size=16M small')).status).toBe(0);
    expect(fill()).toBeNull();
    fsyncSync(fd);
    closeSync(fd);
    await qmp.execute('block-export-del', { id: 'e' });
    await gone();
    await qmp.execute('blockdev-del', { 'node-name': 'd' });
    expect(spawnSync(img, ['check', `${dir}/small/disk`]).status).toBe(0);
  });

  test('passes its errors on, of reads, writes and flushes, and goes on afterwards', async (context) => {
    requirePeer(context, 'fuse');
    writeFileSync(`${dir}/disk`, Buffer.alloc(MiB, 7));
    const once = (event: string, errno: number): object => ({ event, errno, once: true, immediately: false });
    await serve({
      driver: 'blkdebug',
      image: { driver: 'file', filename: `${dir}/disk` },
      'inject-error': [
        { ...once('none', E.EIO), iotype: 'read', sector: 8 },
        { ...once('none', E.EIO), iotype: 'write', sector: 16 },
        { ...once('none', E.ENOSPC), iotype: 'write', sector: 24 },
        { ...once('none', E.EIO), iotype: 'flush' },
        { ...once('none', E.EIO), iotype: 'discard', sector: 40 },
      ],
    });
    const fd = openSync(`${dir}/m`, 'r+');
    const data = Buffer.alloc(4096, 9);
    const told = (code: string): object => expect.objectContaining({ code }) as object;
    const failure = (call: () => unknown): unknown => {
      try {
        return call();
      } catch (error) {
        return error;
      }
    };
    for (const [call, code, after] of [
      [() => readSync(fd, data, 0, 4096, 4096), 'EIO', 4096],
      [() => writeSync(fd, data, 0, 4096, 8192), 'EIO', 4096],
      [() => writeSync(fd, data, 0, 4096, 12288), 'ENOSPC', 4096],
      [() => fsyncSync(fd), 'EIO', undefined],
    ] as const) {
      expect(failure(call)).toEqual(told(code));
      expect(failure(call)).toBe(after);
    }
    closeSync(fd);
  });
});

describe('an export that ends while it is used', () => {
  test('gives every call an answer, and the place back', async (context) => {
    requirePeer(context, 'fuse', 'fio');
    await serve({ driver: 'null-co', size: 16 * MiB, 'latency-ns': 30e6, 'read-zeroes': true });
    const loads = Promise.all(
      ['psync', 'libaio'].map((engine) =>
        run(`fio --name=x --filename=m --rw=randrw --bs=64k --ioengine=${engine} --iodepth=8 --direct=1 --numjobs=4 --thread \
          --size=16M --time_based --runtime=60 --minimal > ${engine}.txt 2>&1`),
      ),
    );
    type Details = { readonly requests: readonly { readonly operations: number }[] };
    for (let done = 0; done < 20; ) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      const [details] = (await qmp.execute('x-query-block-exports')) as Details[];
      done = details?.requests.reduce((sum, { operations }) => sum + operations, 0) ?? 0;
    }
    expect((await run('umount m')).text).toContain('busy');
    await qmp.execute('block-export-del', { id: 'e' });
    await loads;
    await gone();
    await exportNode();
    expect((await run('stat -c %s m')).text.trim()).toBe(String(16 * MiB));
  });

  test('and whose file somebody else unmounts', async (context) => {
    requirePeer(context, 'fuse');
    writeFileSync(`${dir}/disk`, Buffer.alloc(MiB, 7));
    await serve({ driver: 'file', filename: `${dir}/disk` });
    const fd = openSync(`${dir}/m`, 'r');
    expect((await run('umount -l m')).status).toBe(0);
    const data = Buffer.alloc(16);
    expect(readSync(fd, data, 0, 16, 0)).toBe(16);
    closeSync(fd);
    await qmp.execute('block-export-del', { id: 'e' });
    await gone();
    await exportNode();
    expect((await run('umount m')).status).toBe(0);
    await qmp.execute('block-export-del', { id: 'e' });
    await gone();
    await exportNode();
    expect(readFileSync(`${dir}/m`).length).toBe(MiB);
  });
});

test('a place where another daemon has its file is taken', async (context) => {
  requirePeer(context, 'fuse');
  writeFileSync(`${dir}/disk`, Buffer.alloc(MiB, 7));
  await serve({ driver: 'file', filename: `${dir}/disk` });
  const other = await startDaemon('qblockd');
  const second = await other.connect();
  try {
    await second.negotiate();
    await second.execute('blockdev-add', { driver: 'null-co', 'node-name': 'd', size: 4096 });
    await expect(
      second.execute('block-export-add', { type: 'fuse', id: 'e', 'node-name': 'd', mountpoint: `${dir}/m` }),
    ).rejects.toThrow(`There already is a FUSE export on '${dir}/m'`);
    expect(readFileSync(`${dir}/m`).length).toBe(MiB);
  } finally {
    second.close();
    await other.stop();
  }
});
