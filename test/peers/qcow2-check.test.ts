/** Checks and repairs of damaged qcow2 images compared with `qemu-img check`: counts, report, repaired images. */

import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { type CheckOutcome, checkOurs, checkTheirs, type Repair } from '../drivers/qcow2/check-compare.ts';
import { makeImage, RECIPES, SCENARIOS, type Scenario } from '../drivers/qcow2/check-scenarios.ts';
import { editImage } from '../drivers/qcow2/damage.ts';
import { scratch, testLayer } from '../drivers/qcow2/open-layer.ts';
import { requirePeer } from './requires.ts';

const folder = scratch();
const { layer, close } = testLayer();
afterAll(async () => {
  await close();
  rmSync(folder, { recursive: true, force: true });
});

/** What the original says when it closes an image whose bitmaps it cannot write back: not part of the check. */
const CLOSING = 'qcow2_free_clusters failed: Invalid argument';

/** The damaged image of a scenario; the image it is made of is kept for the next one. */
function prepare({ recipe, damage }: Scenario): { dir: string; damaged: string } {
  const dir = path.join(folder, recipe);
  if (!existsSync(dir)) {
    mkdirSync(dir);
    makeImage(dir, RECIPES[recipe]);
  }
  const damaged = path.join(dir, 'damaged.qcow2');
  copyFileSync(path.join(dir, 'a.qcow2'), damaged);
  const image = editImage(damaged);
  damage(image);
  image.save();
  return { dir, damaged };
}

function plain({ status, counts, lines }: CheckOutcome, closing: boolean): CheckOutcome {
  return { status, counts, lines: closing ? lines.filter((line) => line !== CLOSING) : lines };
}

for (const [name, scenario] of Object.entries(SCENARIOS)) {
  test(name, async (context) => {
    requirePeer(context, 'qemu-img', 'qemu-io');
    const { dir, damaged } = prepare(scenario);
    // The name in the image is relative to the working directory.
    const dataFile = { 'data-file': { driver: 'file', filename: path.join(dir, 'd.raw') } };
    const options = scenario.recipe.includes('data file') ? dataFile : {};
    const hasBitmaps = scenario.recipe === 'bitmaps';
    const repairs: readonly Repair[] = scenario.readOnly ? ['none'] : ['none', 'leaks', 'all'];
    for (const repair of repairs) {
      const theirs = path.join(dir, 'theirs.qcow2');
      const ours = path.join(dir, 'ours.qcow2');
      copyFileSync(damaged, theirs);
      copyFileSync(damaged, ours);
      const expected = checkTheirs(theirs, repair);
      const found = await checkOurs(layer, ours, repair, options);
      expect(plain(found, hasBitmaps), `repair: ${repair}`).toEqual(plain(expected, hasBitmaps));
      // Opening an image with bitmaps for writing rewrites them.
      if (expected.counts === null || hasBitmaps) continue;
      expect(readFileSync(ours).equals(readFileSync(theirs)), `same bytes, repair: ${repair}`).toBe(true);
    }
  });
}
