/** The image check by itself: repairs that are interrupted, and images damaged at random. */

import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import { requirePeer } from '../../peers/requires.ts';
import { createRecording, cut, type Loss, type Recording, recorderDriver } from '../memory/recorder.ts';
import { checkOurs } from './check-compare.ts';
import { makeImage, RECIPES, type RecipeName, SCENARIOS } from './check-scenarios.ts';
import { editImage, type ImageEditor, OFFSET_MASK } from './damage.ts';
import { inspect } from './inspect.ts';
import { scratch, testLayer } from './open-layer.ts';
import { createRandom, type Random } from './random.ts';

const folder = scratch();
const { layer, close } = testLayer();
afterAll(async () => {
  await close();
  rmSync(folder, { recursive: true, force: true });
});

/** A fresh copy of a recipe's image, damaged. */
function prepare(recipe: RecipeName, damage: (image: ImageEditor) => void): string {
  const dir = path.join(folder, recipe);
  if (!existsSync(dir)) {
    mkdirSync(dir);
    makeImage(dir, RECIPES[recipe]);
  }
  const file = path.join(dir, 'damaged.qcow2');
  copyFileSync(path.join(dir, 'a.qcow2'), file);
  const image = editImage(file);
  damage(image);
  image.save();
  return file;
}

/** Repairs an image in memory; every write is recorded. */
async function repairRecorded(initial: Buffer, random: Random): Promise<Recording> {
  const recording = createRecording(initial);
  const { engine } = createEngine('threads');
  const recorder = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers: { ...drivers, recorder: recorderDriver(recording, random) },
  });
  const node = await openFromOptions(recorder, { driver: 'qcow2', file: { driver: 'recorder' } }, 'check');
  const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };
  const backend = await recorder.createBackend(node, { perm: Perm.all, shared: Perm.all }, owner);
  const request = { fixLeaks: true, fixErrors: true, report: () => undefined };
  await wrapped.check(node, request);
  await backend.close();
  await recorder.closeAll();
  engine.close();
  return recording;
}

const INTERRUPTED = [
  'leak, 512',
  'rebuild, 512',
  'rebuild, 512, holes',
  'rebuild, snapshots',
  'rebuild, leaks',
  'data: used twice',
  'flag and corruption',
  'snapshots: one',
  'snapshots: three',
  'zero: unaligned, and more',
  'both bits and a rebuild',
  'refcounts: no block',
] as const satisfies readonly (keyof typeof SCENARIOS)[];

test.each(INTERRUPTED)('an interrupted repair makes nothing worse: %s', async (name) => {
  const { recipe, damage } = SCENARIOS[name]!;
  const initial = readFileSync(prepare(recipe, damage));
  // Flags may lag behind refcounts: those that claim too much did so before.
  const before = inspect(initial, false).corruptions.length;
  const random = createRandom(7);
  const recording = await repairRecorded(initial, random);
  expect(inspect(recording.data), 'the finished repair').toMatchObject({ corruptions: [], leaks: 0 });
  const losses: readonly Loss[] = ['nothing-lost', 'everything-lost', 'some-lost', 'torn'];
  const step = Math.max(1, Math.floor(recording.log.length / 60));
  for (let end = 0; end <= recording.log.length; end += step) {
    for (const loss of losses) {
      const found = inspect(cut(recording, end, loss, random), false).corruptions;
      expect(found.length, `${loss} at ${end}: ${found.join(', ')}`).toBeLessThanOrEqual(before);
    }
  }
});

/** Places of words that mean something: header fields, table entries, refcounts, snapshots. */
function metadataWords(image: ImageEditor): number[] {
  const words: number[] = [];
  const add = (from: number, bytes: number): void => {
    const end = Math.min(from + bytes, image.buf.length);
    for (let at = from; at + 8 <= end; at += 8) if (image.u64(at) !== 0n) words.push(at);
  };
  const entries = Number(image.get('l1Entries'));
  add(24, 80);
  add(image.l1At(0), entries * 8);
  for (let i = 0; i < entries; i++) add(Number(image.u64(image.l1At(i)) & OFFSET_MASK), image.clusterBytes);
  add(image.refTableAt(0), image.clusterBytes);
  for (let at = image.refTableAt(0); image.u64(at) !== 0n; at += 8)
    add(Number(image.u64(at)), image.clusterBytes);
  if (image.get('snapshotCount') > 0n) add(Number(image.get('snapshotsOffset')), 200);
  return words;
}

function damageAtRandom(image: ImageEditor, random: Random): void {
  const words = metadataWords(image);
  for (let edits = 1 + random.below(4); edits > 0; edits--) {
    const at = random.pick(words);
    const kind = random.below(5);
    const clusters = Math.ceil(image.buf.length / image.clusterBytes);
    image.edit(at, (old) => {
      if (kind === 0) return old ^ (1n << BigInt(random.below(64)));
      if (kind === 1) return image.u64(random.pick(words));
      if (kind === 2) return old + BigInt(image.clusterBytes * (random.below(7) - 3));
      if (kind === 3) return 0n;
      return (1n << 63n) | BigInt(image.clusterBytes * random.below(clusters + 3));
    });
  }
}

/** More runs from other seeds: CHECK_RUNS=1000, CHECK_SEED=1. */
const RUNS = Number(process.env.CHECK_RUNS ?? 60);
const FIRST_SEED = Number(process.env.CHECK_SEED ?? 1);
const AT_RANDOM: readonly RecipeName[] = ['plain', 'mixed 4k', '512', 'extended', 'snapshots', '1 bit'];

test('images damaged at random: a repair that says it has succeeded has', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
    const random = createRandom(seed);
    const file = prepare(random.pick(AT_RANDOM), (image) => damageAtRandom(image, random));
    const first = await checkOurs(layer, file, 'all');
    if (first.status !== 0) continue;
    const again = await checkOurs(layer, file, 'all');
    expect(again, `seed ${seed}: ${first.lines.join('\n')}`).toMatchObject({ status: 0, lines: [] });
  }
});
