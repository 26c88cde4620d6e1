/**
 * Persistent dirty bitmaps when things go wrong: power cuts at any moment of several sessions, and write errors while
 * bitmaps are stored. A bitmap that looks right must be right; the image stays sound in any case.
 */

import { readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import {
  createBitmap,
  type DirtyBitmap,
  findBitmap,
  nextDirty,
  releaseBitmap,
} from '../../../src/block/bitmaps/dirty-bitmap.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import { E } from '../../../src/errors/errno.ts';
import { ioError } from '../../../src/errors/error.ts';
import { requirePeer } from '../../peers/requires.ts';
import { createRecording, cut, type Loss, type Recording, recorderDriver } from '../memory/recorder.ts';
import { inspect } from './inspect.ts';
import { peer, scratch } from './open-layer.ts';
import { createRandom, type Random } from './random.ts';

const SIZE = 1024 * 1024;
const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function newImage(options: string): Buffer {
  const file = path.join(folder, 'new.qcow2');
  peer('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, file, String(SIZE));
  return readFileSync(file);
}

interface Session {
  readonly node: BlockNode;
  readonly backend: BlockBackend;
  /** What was reported. */
  readonly reports: string[];
  close(): Promise<void>;
}

/** `faults.failAt`: the write with that number fails, once. */
interface Faults {
  writes: number;
  failAt: number;
}

async function open(
  recording: Recording,
  random: Random,
  readOnly = false,
  faults: Faults = { writes: 0, failAt: -1 },
): Promise<Session> {
  const { engine } = createEngine('threads');
  const reports: string[] = [];
  const recorder = recorderDriver(recording, random);
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    report: (text) => void reports.push(text),
    drivers: {
      ...drivers,
      recorder: {
        ...recorder,
        pwritev: (...args) => {
          if (faults.writes++ === faults.failAt) return Promise.reject(ioError(E.EIO));
          return recorder.pwritev!(...args);
        },
      },
    },
  });
  const closeLayer = async (): Promise<void> => {
    await layer.closeAll();
    engine.close();
  };
  try {
    const node = await openFromOptions(layer, {
      driver: 'qcow2',
      'node-name': 'disk',
      file: { driver: 'recorder' },
      'read-only': readOnly,
    });
    const perm = readOnly ? Perm.consistentRead : Perm.all;
    const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };
    const backend = await layer.createBackend(node, { perm, shared: Perm.all }, owner);
    const close = async (): Promise<void> => {
      await backend.close();
      await closeLayer();
    };
    return { node, backend, reports, close };
  } catch (error) {
    await closeLayer();
    throw error;
  }
}

/** The marked extents as text, to be compared. */
function contentOf(bitmap: DirtyBitmap): string {
  const extents: string[] = [];
  for (let extent = nextDirty(bitmap, 0); extent !== null; ) {
    extents.push(`${extent.offset}+${extent.bytes}`);
    extent = nextDirty(bitmap, extent.offset + extent.bytes);
  }
  return extents.join(' ');
}

/** Name and content of all persistent bitmaps. */
function contentsOf(node: BlockNode): Map<string, string> {
  return new Map([...node.dirtyBitmaps.all].map((bitmap) => [bitmap.name ?? '', contentOf(bitmap)]));
}

async function write({ backend }: Session, offset: number, bytes: number): Promise<void> {
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(1);
  await backend.pwritev(offset, bytes, vectorOf(memory), 0);
}

/** A few random writes, bitmaps that come and bitmaps that go. */
async function work(session: Session, random: Random): Promise<void> {
  const { node } = session;
  for (let left = 4 + random.below(8); left > 0; left--) {
    const kind = random.below(6);
    if (kind === 0 && node.dirtyBitmaps.all.size < 6) {
      const granularityBytes = 2 ** (9 + random.below(6));
      const name = `b${random.below(1_000_000)}`;
      createBitmap(node, { name, granularityBytes, persistent: true, enabled: random.below(4) > 0 });
    } else if (kind === 1 && node.dirtyBitmaps.all.size > 1) {
      const bitmap = random.pick([...node.dirtyBitmaps.all]);
      const name = bitmap.name ?? '';
      await node.layer.graphLock.withRead(async (guard) => node.driver.bitmaps!.remove(node, guard, name));
      releaseBitmap(bitmap);
    } else {
      const offset = random.below(SIZE / 512) * 512;
      const bytes = Math.min(SIZE - offset, 512 * (1 + random.below(random.pick([4, 400]))));
      await write(session, offset, bytes);
      if (random.below(3) === 0) await session.backend.flush();
    }
  }
}

/** What a session left: the log's length when it was open, and when it closed, with the bitmaps then. */
interface Past {
  readonly opened: number;
  readonly stored: ReadonlyMap<string, string>;
}

describe('power cuts', () => {
  for (const options of ['cluster_size=512', 'cluster_size=4k', 'cluster_size=512,refcount_bits=1']) {
    test(options, async (context) => {
      requirePeer(context, 'qemu-img');
      for (let seed = 1; seed <= Number(process.env.POWER_CUT_RUNS ?? 2); seed++) {
        await run(seed, options);
      }
    });
  }

  async function run(seed: number, options: string): Promise<void> {
    const random = createRandom(seed);
    const recording = createRecording(newImage(options));
    const pasts: Past[] = [];
    for (let i = 0; i < 5; i++) {
      const session = await open(recording, random);
      recording.log.push({ kind: 'mark' });
      const opened = recording.log.length;
      if (i === 0) createBitmap(session.node, { name: 'always', granularityBytes: 512, persistent: true });
      await work(session, random);
      pasts.push({ opened, stored: contentsOf(session.node) });
      await session.close();
      expect(session.reports).toEqual([]);
    }
    const end = inspect(recording.data);
    expect([end.corruptions, end.leaks]).toEqual([[], 0]);
    const losses: readonly Loss[] = ['nothing-lost', 'everything-lost', 'some-lost', 'torn'];
    let consistent = 0;
    for (let i = 0; i < 60; i++) {
      const at = i === 0 ? recording.log.length : 1 + random.below(recording.log.length);
      const what = `seed ${seed}, cut before ${at} of ${recording.log.length}, ${losses[i % 4]}`;
      const image = cut(recording, at, losses[i % 4]!, random);
      const { corruptions } = inspect(image, true);
      expect(corruptions, what).toEqual([]);
      // Stored by this session, or by the one before if this one was not open yet.
      const last = pasts.findLastIndex(({ opened }) => opened <= at);
      const allowed = pasts.slice(Math.max(last, 0), last + 2);
      const session = await open(createRecording(image), createRandom(1), true);
      for (const bitmap of session.node.dirtyBitmaps.all) {
        if (bitmap.inconsistent) continue;
        consistent++;
        const name = bitmap.name ?? '';
        expect(
          allowed.map(({ stored }) => stored.get(name)),
          `${what}: ${name}`,
        ).toContain(contentOf(bitmap));
      }
      await session.close();
    }
    expect(consistent).toBeGreaterThan(0);
  }
});

describe('a write that fails', () => {
  /** An image with two bitmaps, closed. */
  async function prepared(): Promise<Buffer> {
    const recording = createRecording(newImage('cluster_size=512'));
    const session = await open(recording, createRandom(1));
    for (const name of ['a', 'b'])
      createBitmap(session.node, { name, granularityBytes: 512, persistent: true });
    await write(session, 0, 100 * 512);
    await session.close();
    return recording.data;
  }

  test('while bitmaps are stored: the user hears of it, the image is sound', async (context) => {
    requirePeer(context, 'qemu-img');
    const image = await prepared();
    let failures = 0;
    for (let n = 0; ; n++) {
      const recording = createRecording(image);
      const faults: Faults = { writes: 0, failAt: -1 };
      const session = await open(recording, createRandom(n + 1), false, faults);
      await write(session, 200 * 512, 512);
      await session.backend.flush();
      createBitmap(session.node, { name: 'new', granularityBytes: 1024, persistent: true });
      const stored = contentsOf(session.node);
      faults.failAt = faults.writes + n;
      await session.close().catch(() => undefined);
      const failed = faults.writes > faults.failAt;
      const { corruptions } = inspect(recording.data, true);
      expect(corruptions, `write ${n}`).toEqual([]);
      const after = await open(createRecording(recording.data), createRandom(1), true);
      for (const bitmap of after.node.dirtyBitmaps.all) {
        const name = bitmap.name ?? '';
        if (!bitmap.inconsistent) expect(contentOf(bitmap)).toBe(stored.get(name));
      }
      const lost = findBitmap(after.node, 'new') === null;
      await after.close();
      if (lost) {
        failures++;
        expect(session.reports.join()).toMatch(
          /^Lost persistent bitmaps during inactivation of node 'disk': /,
        );
      }
      if (!failed) break;
    }
    expect(failures).toBeGreaterThan(3);
  });

  test('while the image is being opened: an error, and nothing has changed', async (context) => {
    requirePeer(context, 'qemu-img');
    const image = await prepared();
    const recording = createRecording(image);
    await expect(open(recording, createRandom(1), false, { writes: 0, failAt: 0 })).rejects.toThrow();
    expect(recording.data.equals(image)).toBe(true);
  });

  test('while a bitmap is removed: it stays, and can be removed again', async (context) => {
    requirePeer(context, 'qemu-img');
    const image = await prepared();
    for (let n = 0; ; n++) {
      const recording = createRecording(image);
      const faults: Faults = { writes: 0, failAt: -1 };
      const session = await open(recording, createRandom(n + 1), false, faults);
      const { node } = session;
      const removeIt = (): Promise<void> =>
        node.layer.graphLock.withRead(async (guard) => node.driver.bitmaps!.remove(node, guard, 'a'));
      faults.failAt = faults.writes + n;
      const failed = await removeIt().then(
        () => false,
        () => true,
      );
      faults.failAt = -1;
      if (failed) await removeIt();
      releaseBitmap(findBitmap(node, 'a')!);
      await session.close();
      expect(session.reports).toEqual([]);
      const { corruptions } = inspect(recording.data, true);
      expect(corruptions, `write ${n}`).toEqual([]);
      const after = await open(createRecording(recording.data), createRandom(1), true);
      expect([...after.node.dirtyBitmaps.byName.keys()]).toEqual(['b']);
      expect(contentOf(findBitmap(after.node, 'b')!)).toBe(`0+${100 * 512}`);
      await after.close();
      if (!failed) {
        expect(n).toBeGreaterThan(2);
        break;
      }
    }
  });
});

test('the error of a failed write marks its range', async (context) => {
  requirePeer(context, 'qemu-img');
  const recording = createRecording(newImage('cluster_size=512'));
  const faults: Faults = { writes: 0, failAt: -1 };
  const session = await open(recording, createRandom(1), false, faults);
  const bitmap = createBitmap(session.node, { name: 'a', granularityBytes: 512 });
  faults.failAt = faults.writes;
  await expect(write(session, 1024, 512)).rejects.toThrow();
  expect(contentOf(bitmap)).toBe('1024+512');
  await session.close();
});
