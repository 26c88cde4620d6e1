/** Graph changes: all or nothing, requests and drained sections follow the edges, cycles and frozen edges. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import { allocateIoMemory, type IoVector, vectorOf } from '../../src/aio/memory.ts';
import type { BackendOwner } from '../../src/block/contract/backend-io.ts';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import { Perm } from '../../src/block/contract/request.ts';
import { chainEdges } from '../../src/block/graph/chain.ts';
import {
  appendNode,
  changeGraph,
  dropFilter,
  freezeEdges,
  makeNode,
  replaceNode,
} from '../../src/block/graph/change.ts';
import { type DrainedSection, drainedBegin } from '../../src/block/graph/drain.ts';
import type { BlockNode } from '../../src/block/graph/node.ts';
import { blockOperations, checkOperation } from '../../src/block/graph/op-blockers.ts';
import { co } from '../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { raw } from '../../src/drivers/formats/raw.ts';
import { nullCo } from '../../src/drivers/protocols/null.ts';
import { memoryDisk, memoryLayer } from './memory-driver.ts';

const owner: BackendOwner = {
  describe: () => 'an unnamed block device',
  drainedBegin: () => undefined,
  drainedEnd: () => undefined,
};

/** A filter that passes everything on. */
const pass: BlockDriver<null> = {
  name: 'pass',
  kind: 'filter',
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  open: async () => null,
  preadv: (node, guard, offset, bytes, vec, flags) =>
    co.preadv(node.children[0]!.node, guard, offset, bytes, vec, flags),
  pwritev: (node, guard, offset, bytes, vec, flags) =>
    co.pwritev(node.children[0]!.node, guard, offset, bytes, vec, flags),
};

function filled(value: number): IoVector {
  const memory = allocateIoMemory(512);
  memory.buf.fill(value);
  return vectorOf(memory);
}

function shape(layer: BlockLayer): string[] {
  return layer.nodes.map(
    (node) =>
      `${node.name}: ${node.children.map((edge) => `${edge.name}=${edge.node.name}`).join(' ')} < ` +
      node.parents.map((edge) => (edge.parent.kind === 'node' ? edge.parent.node.name : 'root')).join(' ') +
      ` ${node.parents.map((edge) => `${edge.perm}/${edge.shared}`).join(' ')}`,
  );
}

test('a filter is put under a user at work and taken out again', async () => {
  const disk = memoryDisk(4096);
  const layer = memoryLayer(disk);
  const bottom = await addNode(layer, { driver: 'memory', 'node-name': 'm' });
  const backend = await layer.createBackend(bottom, { perm: Perm.write, shared: Perm.all }, owner);
  const before = shape(layer);
  let stop = false;
  let written = 0;
  const load = (async () => {
    while (!stop) {
      await Promise.all([0, 512, 1024].map((offset) => backend.pwritev(offset, 512, filled(written), 0)));
      written++;
    }
  })();
  for (let round = 0; round < 20; round++) {
    const filter = makeNode(layer, pass, { state: null }) as unknown as BlockNode;
    await appendNode(filter, bottom);
    expect(backend.nodeName).toBe(filter.name);
    expect(filter.totalBytes).toBe(4096);
    await new Promise((resolve) => setTimeout(resolve, 1));
    await dropFilter(filter);
    expect(backend.nodeName).toBe('m');
  }
  stop = true;
  await load;
  expect(shape(layer)).toEqual(before);
  expect(written).toBeGreaterThan(0);
  expect(disk.data[0]).toBe((written - 1) & 0xff);
});

test('a request under way ends on the node it began on, a later one goes to the new node', async () => {
  let proceed = (): void => undefined;
  const disk = memoryDisk(4096, {
    onCall: (name) =>
      name === 'pwritev'
        ? new Promise<void>((resolve) => {
            proceed = resolve;
          })
        : undefined,
  });
  const { engine } = createEngine('threads');
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers: { memory: memoryLayer(disk).drivers.memory!, raw, 'null-co': nullCo },
  });
  const old = await addNode(layer, { driver: 'memory', 'node-name': 'm' });
  const other = await addNode(layer, { driver: 'null-co', 'node-name': 'n', size: 4096 });
  const backend = await layer.createBackend(old, { perm: Perm.write, shared: Perm.all }, owner);
  const first = backend.pwritev(0, 512, filled(1), 0);
  let replaced = false;
  const change = replaceNode(old, other).then(() => {
    replaced = true;
  });
  await new Promise((resolve) => setImmediate(resolve));
  const second = backend.pwritev(0, 512, filled(2), 0);
  expect(replaced).toBe(false);
  proceed();
  await Promise.all([first, change, second]);
  expect(disk.data[0]).toBe(1);
  expect(backend.nodeName).toBe('n');
  expect(old.parents).toEqual([]);
  // The monitor holds it.
  expect(layer.findNode('m')).toBe(old);
});

test('what refuses leaves every edge and permission as it was', async () => {
  const layer = memoryLayer(memoryDisk(4096));
  const m = await addNode(layer, { driver: 'memory', 'node-name': 'm' });
  const other = await addNode(layer, { driver: 'memory', 'node-name': 'other', 'read-only': true });
  const r = await addNode(layer, { driver: 'raw', 'node-name': 'r', file: 'm' });
  await layer.createBackend(r, { perm: Perm.write, shared: Perm.all }, owner);
  const before = shape(layer);
  await expect(replaceNode(m, other)).rejects.toThrow('Block node is read-only');
  expect(shape(layer)).toEqual(before);
  await expect(
    changeGraph(layer, [m], (graph) => {
      graph.redirect(r.children[0]!, other);
      graph.attach({ kind: 'node', node: m }, 'file', 0, r);
      throw new Error('no');
    }),
  ).rejects.toThrow('no');
  expect(shape(layer)).toEqual(before);
  await expect(
    changeGraph(layer, [m], (graph) => graph.attach({ kind: 'node', node: m }, 'file', 0, r)),
  ).rejects.toThrow("Making 'r' a file child of 'm' would create a cycle");
  const thaw = freezeEdges(chainEdges(r, null).concat(r.children));
  await expect(replaceNode(m, other)).rejects.toThrow("Cannot change frozen 'file' link from 'r' to 'm'");
  expect(shape(layer)).toEqual(before);
  thaw();
});

test('a blocked operation names the reason, the newest first', async () => {
  const layer = memoryLayer(memoryDisk(4096));
  const m = await addNode(layer, { driver: 'memory', 'node-name': 'm' });
  const release = blockOperations(m, 'block device is in use by block job: stream', ['resize']);
  expect(() => checkOperation(m, 'stream')).toThrow(
    "Node 'm' is busy: block device is in use by block job: stream",
  );
  checkOperation(m, 'resize');
  await expect(layer.deleteNode('m')).rejects.toThrow('is busy');
  release();
  await layer.deleteNode('m');
});

test('a held node stays open without users, and closes when it is let go', async () => {
  const layer = memoryLayer(memoryDisk(4096));
  await addNode(layer, { driver: 'raw', 'node-name': 'r', file: { driver: 'memory', 'node-name': 'm' } });
  const m = layer.findNode('m')!;
  layer.hold(m);
  await layer.deleteNode('r');
  expect(layer.findNode('m')).toBe(m);
  await layer.release(m);
  expect(layer.findNode('m')).toBeNull();
});

test('parents rest exactly while something below them is drained, however the graph changes', async () => {
  const step = fc.oneof(
    fc.record({ kind: fc.constant('drain' as const), node: fc.nat(3) }),
    fc.record({ kind: fc.constant('end' as const), which: fc.nat(5) }),
    fc.record({ kind: fc.constant('move' as const), edge: fc.nat(5), node: fc.nat(3) }),
    fc.record({ kind: fc.constant('backend' as const), node: fc.nat(3) }),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), async (steps) => {
      const layer = memoryLayer(memoryDisk(4096));
      const nodes: BlockNode[] = [];
      nodes.push(await addNode(layer, { driver: 'memory', 'node-name': 'a' }));
      nodes.push(await addNode(layer, { driver: 'memory', 'node-name': 'b' }));
      nodes.push(await addNode(layer, { driver: 'raw', 'node-name': 'c', file: 'a' }));
      nodes.push(await addNode(layer, { driver: 'raw', 'node-name': 'd', file: 'c' }));
      const edges = [...nodes[2]!.children, ...nodes[3]!.children];
      const depths: { depth: number }[] = [];
      const sections: DrainedSection[] = [];
      for (const each of steps) {
        if (each.kind === 'drain') sections.push(await drainedBegin(nodes[each.node]!));
        else if (each.kind === 'end') sections.splice(each.which % (sections.length || 1), 1)[0]?.end();
        else if (each.kind === 'backend') {
          const told = { depth: 0 };
          depths.push(told);
          const backend = await layer.createBackend(
            nodes[each.node]!,
            { perm: 0, shared: Perm.all },
            { ...owner, drainedBegin: () => void told.depth++, drainedEnd: () => void told.depth-- },
          );
          edges.push(backend.root);
        } else {
          const edge = edges[each.edge % edges.length]!;
          await changeGraph(layer, [], (graph) => graph.redirect(edge, nodes[each.node]!)).catch(
            (error: unknown) => expect(String(error)).toContain('cycle'),
          );
        }
        const roots = edges.filter(({ parent }) => parent.kind === 'root');
        for (const [index, { node }] of roots.entries())
          expect(depths[index]!.depth).toBe(node.quiesced > 0 ? 1 : 0);
      }
      for (const section of sections) section.end();
      expect(depths.every(({ depth }) => depth === 0)).toBe(true);
      expect(nodes.every(({ quiesced }) => quiesced === 0)).toBe(true);
    }),
    { numRuns: 60 },
  );
});
