/** The throttle driver in the graph: whoever waits for requests does not wait for their limits. */

import { afterEach, beforeEach, expect, test } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import { drainedBegin } from '../../../src/block/graph/drain.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { addNode } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import { ObjectTree } from '../../../src/objects/tree.ts';
import { virtualClock } from '../../block/throttle/virtual-clock.ts';

const REQUESTS = 8;
const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };

let layer: BlockLayer;
let backend: BlockBackend;
let done: number;
let closeEngine: () => void;
// Nothing lets time pass here: by its limits only the first request ever ends.
const clock = virtualClock();

beforeEach(async () => {
  const objects = new ObjectTree();
  const { engine } = createEngine('threads');
  closeEngine = () => engine.close();
  layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers,
    clock,
    useThrottleGroup: (id) => objects.useThrottleGroup(id),
  });
  await objects.add({ 'qom-type': 'throttle-group', id: 'g', limits: { 'bps-total': 1 } });
  await addNode(layer, { driver: 'null-co', 'node-name': 'n' });
  await addNode(layer, { driver: 'throttle', 'node-name': 't', file: 'n', 'throttle-group': 'g' });
  const top = await addNode(layer, { driver: 'raw', 'node-name': 'r', file: 't' });
  backend = await layer.createBackend(top, { perm: Perm.consistentRead, shared: Perm.all }, owner);
  done = 0;
  for (let i = 0; i < REQUESTS; i++)
    void backend.preadv(0, 512, vectorOf(allocateIoMemory(512)), 0).then(() => done++);
  await clock.pass(0);
  expect(done).toBe(1);
});
afterEach(async () => {
  await layer.closeAll();
  closeEngine();
});

test.each(['n', 't', 'r'])('a drained section of %s lets them go on', async (name) => {
  const section = await drainedBegin(layer.findNode(name)!);
  await clock.pass(0);
  expect(done).toBe(REQUESTS);
  section.end();
  // Afterwards the limits hold again.
  void backend.preadv(0, 512, vectorOf(allocateIoMemory(512)), 0).then(() => done++);
  await clock.pass(0);
  expect(done).toBe(REQUESTS);
  await backend.close();
  expect(done).toBe(REQUESTS + 1);
});

test('a backend that is closed does not wait for its limits', async () => {
  await backend.close();
  expect(done).toBe(REQUESTS);
});

test('the graph lock is free meanwhile', async () => {
  await addNode(layer, { driver: 'null-co', 'node-name': 'other' });
  await layer.deleteNode('other');
  expect(done).toBe(1);
  await backend.close();
});
