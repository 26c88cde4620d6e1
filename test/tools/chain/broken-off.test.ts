/**
 * commit and rebase that are broken off, by a power cut, a write that fails or a full disk: the chain can be read, and shows
 * what it showed. More runs: POWER_CUT_RUNS=100.
 */

import { rmSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { faultyDisk, faultyDriver, heal } from '../../drivers/memory/faulty-disk.ts';
import {
  createRecording,
  cut,
  type Loss,
  type Recording,
  recorderDriver,
} from '../../drivers/memory/recorder.ts';
import { scratch } from '../../drivers/qcow2/open-layer.ts';
import { createRandom } from '../../drivers/qcow2/random.ts';
import { requirePeer } from '../../peers/requires.ts';
import { type Files, makeImages, NAMES, type Name, shown, startRun } from './disks.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const RUNS = Number(process.env.POWER_CUT_RUNS ?? 1);
const CUTS = 8;
/** From one failing change to the next, behind the first ones. */
const STEP = RUNS === 1 ? 7 : 1;
const LOSSES: readonly Loss[] = ['nothing-lost', 'everything-lost', 'some-lost', 'torn'];
const KINDS = ['commit', 'rebase', 'rebase to nothing'] as const;
const CLUSTERS = [4096, 65536];

const each = <T>(of: (name: Name) => T): Record<Name, T> =>
  Object.fromEntries(NAMES.map((name) => [name, of(name)])) as Record<Name, T>;

/** How long each file's log was at a moment. */
type Moment = Readonly<Record<Name, number>>;

/** Recordings of all files, and a moment for every change of any of them. */
function record(files: Files): { readonly recordings: Record<Name, Recording>; readonly moments: Moment[] } {
  const recordings = each((name) => createRecording(files[name]));
  const moments: Moment[] = [];
  const now = (): Moment => each((name) => recordings[name].log.length);
  for (const name of NAMES) {
    const { log } = recordings[name];
    const push = log.push.bind(log);
    log.push = (...entries) => {
      const length = push(...entries);
      moments.push(now());
      return length;
    };
  }
  return { recordings, moments };
}

test.each(KINDS.flatMap((kind) => CLUSTERS.map((bytes) => [kind, bytes] as const)))(
  'power cuts: %s, clusters of %i bytes',
  async (kind, clusterBytes) => {
    const files = makeImages(folder, clusterBytes);
    const before = await shown(folder, files);
    for (let seed = 1; seed <= RUNS; seed++) {
      const random = createRandom(seed * 100 + clusterBytes);
      const { recordings, moments } = record(files);
      const run = startRun(
        kind,
        folder,
        each((name) => recorderDriver(recordings[name], random)),
      );
      await run.command();
      await run.close();
      expect(moments.length).toBeGreaterThan(4);
      expect(
        await shown(
          folder,
          each((name) => recordings[name].data),
        ),
      ).toEqual(before);
      for (let number = 0; number < CUTS; number++) {
        // The last moments, in which the header changes and the image is emptied, are looked at most.
        const back =
          number % 2 === 0 ? random.below(Math.min(12, moments.length)) : random.below(moments.length);
        const moment = moments[moments.length - 1 - back]!;
        const loss = random.pick(LOSSES);
        const after = each((name) => cut(recordings[name], moment[name], loss, random));
        const found = await shown(folder, after);
        expect(
          typeof found === 'string' ? found : found.equals(before as Buffer),
          `seed ${seed}, cut ${number}, ${loss}, ${back} before the end`,
        ).toBe(true);
      }
    }
  },
);

test.each(KINDS)(
  'failures: %s, at change 1, 2, 3, ..., of one change (EIO) or of all behind it too (ENOSPC)',
  async (kind) => {
    const files = makeImages(folder, 16384);
    const before = await shown(folder, files);
    const victims: readonly Name[] = kind === 'commit' ? ['base', 'top'] : ['top'];
    let failures = 0;
    for (const victim of victims) {
      for (let number = 1; ; number += number < 4 ? 1 : STEP) {
        const disks = each((name) => faultyDisk(files[name]));
        disks[victim].left = number;
        disks[victim].persistent = number % 2 === 0;
        disks[victim].errno = disks[victim].persistent ? 28 : 5;
        const run = startRun(
          kind,
          folder,
          each((name) => faultyDriver(disks[name])),
        );
        const failed = await run.command().then(
          () => false,
          () => true,
        );
        const { hit } = disks[victim];
        heal(disks[victim]);
        await run.close();
        expect(
          await shown(
            folder,
            each((name) => disks[name].data),
          ),
          `${victim}, change ${number}`,
        ).toEqual(before);
        if (!hit) {
          expect(failed).toBe(false);
          break;
        }
        if (failed) failures++;
      }
    }
    expect(failures).toBeGreaterThan(2);
  },
);

test('a disk without space: the command fails, nothing is lost', async (context) => {
  requirePeer(context, 'qemu-img');
  const files = makeImages(folder, 16384);
  const before = await shown(folder, files);
  for (const kind of KINDS) {
    for (const more of [0, 8]) {
      const disks = each((name) => faultyDisk(files[name]));
      const victim = kind === 'commit' ? 'base' : 'top';
      disks[victim].capacityPages = disks[victim].pages.size + more;
      const run = startRun(
        kind,
        folder,
        each((name) => faultyDriver(disks[name])),
      );
      await expect(run.command()).rejects.toThrow(/No space left/);
      disks[victim].capacityPages = Number.POSITIVE_INFINITY;
      await run.close();
      expect(
        await shown(
          folder,
          each((name) => disks[name].data),
        ),
        `${kind}, ${more} pages`,
      ).toEqual(before);
    }
  }
});
