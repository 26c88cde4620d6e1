/** The debug mode of the graph lock: who looks at edges without it is named. The scripts of iotests run in it. */

import { afterEach, beforeEach, expect, test, vi } from 'vitest';

beforeEach(() => {
  vi.stubEnv('QBLOCKD_DEBUG_GRAPH', '1');
  vi.resetModules();
  vi.spyOn(process.stderr, 'write').mockReturnValue(true);
});
afterEach(() => {
  vi.unstubAllEnvs();
  vi.resetModules();
  vi.restoreAllMocks();
});

/** A layer in the debug mode with a raw node over a disk in memory, and what acts on it. */
async function debugged() {
  const { memoryDisk, memoryLayer } = await import('./memory-driver.ts');
  const { addNode } = await import('../../src/block/open/open.ts');
  const { asMonitor } = await import('../../src/block/graph/debug.ts');
  const { wrapped, co } = await import('../../src/block/io/callbacks.ts');
  const layer = memoryLayer(memoryDisk(4096));
  const node = await asMonitor(async () => {
    await addNode(layer, { driver: 'memory', 'node-name': 'm' });
    return addNode(layer, { driver: 'raw', 'node-name': 'r', file: 'm' });
  });
  return { layer, node, asMonitor, wrapped, co };
}

test('edges are looked at by the monitor and by holders of the lock', async () => {
  const { layer, node, asMonitor, wrapped, co } = await debugged();
  expect(asMonitor(() => node.children.length)).toBe(1);
  await wrapped.flush(node);
  await layer.graphLock.withRead((guard) => co.flush(node, guard));
  await asMonitor(() => layer.deleteNode('r'));
});

test('others are named', async () => {
  const { node } = await debugged();
  expect(() => node.children.length).toThrow("graph lock: children of node 'r' looked at without the lock");
  expect(() => node.parents[0]).toThrow("parents of node 'r'");
  expect(process.stderr.write).toHaveBeenCalledWith(expect.stringContaining('graph-debug.test.ts'));
});

test('edges are changed under the write lock only, by the monitor too', async () => {
  const { node, asMonitor } = await debugged();
  expect(() => asMonitor(() => node.children.pop())).toThrow(
    "children of node 'r' changed without the write lock",
  );
});

test('a guard ends with its lock', async () => {
  const { layer, node, co } = await debugged();
  const guard = layer.graphLock.tryRead()!;
  let late: Promise<unknown> = Promise.resolve();
  const { asHolder } = await import('../../src/block/graph/debug.ts');
  asHolder(guard, () => {
    late = new Promise((resolve) => setImmediate(resolve)).then(() => node.children.length);
  });
  layer.graphLock.readDone(guard);
  await expect(late).rejects.toThrow('without the lock');
  expect(() => co.flush(node, guard)).toThrow('a guard was passed on after its lock had been given back');
  expect(() => layer.graphLock.readDone(guard)).toThrow('a guard was given back after');
});
