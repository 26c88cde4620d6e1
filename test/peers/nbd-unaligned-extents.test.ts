/** Extents that do not end at sectors, from a real server, through everything that goes by block status. */

import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { makeScratchDir, type RunningDaemon, repositoryRoot, startDaemon } from './daemons.ts';
import { hasPeer, requirePeer } from './requires.ts';

const KiB = 1024;
const OFFSET = 100;
const RANGE = 1024 * KiB;
const SOURCE = 'driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=src.sock';
let dir: string;
let shown: Buffer;
let stopServer = async (): Promise<void> => undefined;
let daemon: RunningDaemon;

beforeAll(async () => {
  dir = makeScratchDir();
  const disk = Buffer.alloc(2048 * KiB);
  disk.fill(5, 64 * KiB, 128 * KiB);
  disk.fill(6, 576 * KiB, 640 * KiB);
  shown = disk.subarray(OFFSET, OFFSET + RANGE);
  execFileSync('truncate', ['-s', String(disk.length), path.join(dir, 'f')]);
  for (const at of [64 * KiB, 576 * KiB]) {
    writeFileSync(path.join(dir, 'part'), disk.subarray(at, at + 64 * KiB));
    execFileSync('dd', ['if=part', 'of=f', `seek=${at / KiB}`, 'bs=1k', 'conv=notrunc', 'status=none'], {
      cwd: dir,
    });
  }
  if (!hasPeer('nbdkit')) return;
  const filter = ['--filter=offset', 'file', 'f', `offset=${OFFSET}`, `range=${RANGE}`];
  const server = spawn('nbdkit', ['-f', '-U', 'src.sock', ...filter], { cwd: dir, stdio: 'ignore' });
  const ended = new Promise<void>((resolve) => server.once('close', () => resolve()));
  stopServer = async () => {
    server.kill();
    await ended;
  };
  for (let i = 0; i < 400 && !existsSync(path.join(dir, 'src.sock')); i++)
    await new Promise((resolve) => setTimeout(resolve, 25));
  daemon = await startDaemon('qblockd', {
    dir,
    args: [
      ['--blockdev', 'driver=nbd,node-name=nbd,server.type=unix,server.path=src.sock'],
      ['--blockdev', 'driver=raw,node-name=disk,file=nbd'],
      ['--nbd-server', 'addr.type=unix,addr.path=out.sock'],
      ['--export', 'type=nbd,id=disk,node-name=disk'],
    ].flat(),
  });
});

afterAll(async () => {
  await daemon?.stop();
  await stopServer();
  rmSync(dir, { recursive: true, force: true });
});

const img = (...words: string[]): string =>
  execFileSync(path.join(repositoryRoot, 'daemon/bin/qblock-img'), words, { cwd: dir, encoding: 'utf8' });

test('map, convert and compare', (context) => {
  requirePeer(context, 'nbdkit');
  const extents = JSON.parse(img('map', '--output=json', '--image-opts', SOURCE)) as {
    start: number;
    zero: boolean;
  }[];
  const starts = extents.map(({ start, zero }) => [start, zero]);
  const data = [64, 128, 576, 640].map((at) => at * KiB - OFFSET);
  expect(starts).toEqual([
    [0, true],
    [data[0], false],
    [data[1], true],
    [data[2], false],
    [data[3], true],
  ]);
  for (const format of ['raw', 'qcow2']) {
    img('convert', '--image-opts', SOURCE, '-O', format, `copy.${format}`);
    img('convert', '-f', format, '-O', 'raw', `copy.${format}`, 'back');
    expect(readFileSync(path.join(dir, 'back')).equals(shown)).toBe(true);
  }
  execFileSync('truncate', ['-s', String(RANGE), 'empty'], { cwd: dir });
  const second = 'driver=raw,file.driver=file,file.filename=empty';
  expect(() => img('compare', '--image-opts', SOURCE, second)).toThrow();
});

test('an export, a mirror and a backup', async (context) => {
  requirePeer(context, 'nbdkit', 'nbdcopy', 'nbdinfo');
  const uri = 'nbd+unix:///disk?socket=out.sock';
  const map = JSON.parse(
    execFileSync('nbdinfo', ['--map', '--json', uri], { cwd: dir, encoding: 'utf8' }),
  ) as {
    offset: number;
    type: number;
  }[];
  expect(map.map(({ offset, type }) => [offset, type])).toEqual(
    [0, 64 * KiB - OFFSET, 128 * KiB - OFFSET, 576 * KiB - OFFSET, 640 * KiB - OFFSET].map((offset, i) => [
      offset,
      i % 2 === 0 ? 3 : 0,
    ]),
  );
  execFileSync('nbdcopy', [uri, 'nbd.copy'], { cwd: dir });
  expect(readFileSync(path.join(dir, 'nbd.copy')).equals(shown)).toBe(true);
  const qmp = await daemon.connect();
  await qmp.negotiate();
  /** Resolves when the job is ready, or gone. */
  const settled = async (): Promise<boolean> => {
    for (;;) {
      const jobs = (await qmp.execute('query-jobs')) as { status: string }[];
      if (jobs.length === 0 || jobs[0]!.status === 'ready') return jobs.length > 0;
    }
  };
  for (const id of ['mirror', 'backup']) {
    execFileSync('truncate', ['-s', String(RANGE), id], { cwd: dir });
    await qmp.execute('blockdev-add', { driver: 'file', 'node-name': id, filename: id });
    await qmp.execute(`blockdev-${id}`, { 'job-id': id, device: 'disk', target: id, sync: 'full' });
    if (await settled()) {
      await qmp.execute('block-job-cancel', { device: id });
      await settled();
    }
    expect(readFileSync(path.join(dir, id)).equals(shown)).toBe(true);
  }
  qmp.close();
});

test('an export that ends within a sector', (context) => {
  requirePeer(context, 'nbdkit');
  requirePeer(context, 'qemu-img');
  const map = (program: string): string => {
    const command = `${program} map --output=json "$uri" && ${program} map "$uri"`;
    const words = ['-U', '-', 'pattern', '1000001', '--run', command];
    return execFileSync('nbdkit', words, { encoding: 'utf8' }).replace(/socket=.*/g, '');
  };
  expect(map(path.join(repositoryRoot, 'daemon/bin/qblock-img'))).toBe(map('qemu-img'));
});
