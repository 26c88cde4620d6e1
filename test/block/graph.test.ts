/** Permissions, drain, the graph lock, and that no I/O callback is reached without it. */

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import type { BackendOwner } from '../../src/block/contract/backend-io.ts';
import { Perm } from '../../src/block/contract/request.ts';
import { drainedBegin } from '../../src/block/graph/drain.ts';
import { GraphLock } from '../../src/block/graph/lock.ts';
import { co, sync, wrapped } from '../../src/block/io/callbacks.ts';
import { IO_CALLBACKS, type IoCallbackName } from '../../src/block/io/control.ts';
import { addNode } from '../../src/block/open/open.ts';
import { memoryDisk, memoryLayer } from './memory-driver.ts';

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
const vec = vectorOf(allocateIoMemory(512));

function owner(log: string[] = []): BackendOwner {
  return {
    describe: () => 'an unnamed block device',
    drainedBegin: () => void log.push('begin'),
    drainedEnd: () => void log.push('end'),
  };
}

test('a conflict names both users, and leaves the graph as it was', async () => {
  const layer = memoryLayer(memoryDisk(4096));
  const node = await addNode(layer, { driver: 'memory', 'node-name': 'm' });
  await addNode(layer, { driver: 'raw', 'node-name': 'r', file: 'm', size: 512 });
  await expect(layer.createBackend(node, { perm: Perm.resize, shared: Perm.all }, owner())).rejects.toThrow(
    "Permission conflict on node 'm': permissions 'resize' are both required by an unnamed block device (uses node 'm' as 'root' child) and unshared by node 'r' (uses node 'm' as 'file' child).",
  );
  expect(node.parents.map((edge) => edge.name)).toEqual(['file']);
  const alone = await layer.createBackend(node, { perm: Perm.write, shared: 0 }, owner());
  await expect(
    layer.createBackend(node, { perm: Perm.consistentRead, shared: Perm.all }, owner()),
  ).rejects.toThrow('consistent read');
  await alone.close();
  const other = await layer.createBackend(node, { perm: Perm.consistentRead, shared: Perm.all }, owner());
  await other.close();
});

test('permissions reach the bottom of the graph and go away with their user', async () => {
  const layer = memoryLayer(memoryDisk(4096));
  const bottom = await addNode(layer, { driver: 'memory', 'node-name': 'm' });
  const top = await addNode(layer, { driver: 'raw', 'node-name': 'r', file: { driver: 'raw', file: 'm' } });
  const backend = await layer.createBackend(top, { perm: Perm.write, shared: Perm.consistentRead }, owner());
  expect(bottom.parents[0]).toMatchObject({ perm: Perm.write, shared: Perm.consistentRead });
  await backend.close();
  expect(bottom.parents[0]).toMatchObject({ perm: 0, shared: Perm.all });
});

test('a read-only node refuses writers', async () => {
  const layer = memoryLayer(memoryDisk(4096));
  const node = await addNode(layer, { driver: 'memory', 'node-name': 'm', 'read-only': true });
  await expect(layer.createBackend(node, { perm: Perm.write, shared: Perm.all }, owner())).rejects.toThrow(
    'Block node is read-only',
  );
});

test('an inline child goes with its parent, a named one stays; a failed open leaves nothing', async () => {
  const layer = memoryLayer(memoryDisk(4096));
  await addNode(layer, { driver: 'memory', 'node-name': 'm' });
  await addNode(layer, {
    driver: 'raw',
    'node-name': 'r',
    file: { driver: 'raw', 'node-name': 'inner', file: 'm' },
  });
  await layer.deleteNode('r');
  expect(layer.nodes.map((node) => node.name)).toEqual(['m']);
  await expect(
    addNode(layer, { driver: 'raw', 'node-name': 'r', offset: 2 ** 40, file: { driver: 'raw', file: 'm' } }),
  ).rejects.toThrow('Offset');
  await expect(
    addNode(layer, { driver: 'raw', 'node-name': 'm', file: { driver: 'memory' } }),
  ).rejects.toThrow('Duplicate');
  expect(layer.nodes.map((node) => node.name)).toEqual(['m']);
  expect(layer.findNode('m')?.parents).toEqual([]);
  await layer.closeAll();
  expect(layer.nodes).toEqual([]);
});

test('a drained section waits for requests under way and holds back new ones', async () => {
  let proceed = (): void => undefined;
  const disk = memoryDisk(4096, {
    onCall: (name) =>
      name === 'preadv'
        ? new Promise<void>((resolve) => {
            proceed = resolve;
          })
        : undefined,
  });
  const layer = memoryLayer(disk);
  const bottom = await addNode(layer, { driver: 'memory', 'node-name': 'm' });
  const top = await addNode(layer, { driver: 'raw', 'node-name': 'r', file: 'm' });
  const log: string[] = [];
  const backend = await layer.createBackend(top, { perm: Perm.consistentRead, shared: Perm.all }, owner(log));
  const first = backend.preadv(0, 512, vec, 0);
  let drained = false;
  const section = drainedBegin(bottom).then((begun) => {
    drained = true;
    return begun;
  });
  await tick();
  expect([drained, log]).toEqual([false, ['begin']]);
  const second = backend.preadv(0, 512, vec, 0).then(() => log.push('second'));
  proceed();
  await first;
  const begun = await section;
  await tick();
  expect(log).toEqual(['begin']);
  begun.end();
  begun.end();
  expect(log).toEqual(['begin', 'end']);
  await tick();
  proceed();
  await second;
  expect(log).toEqual(['begin', 'end', 'second']);
});

test('a graph change waits for readers, and readers that come later wait for it', async () => {
  const lock = new GraphLock();
  const guard = lock.tryRead();
  expect(guard).not.toBeNull();
  const order: string[] = [];
  const change = lock.withWrite(() => void order.push('change'));
  const reader = lock.withRead(async () => void order.push('reader'));
  await tick();
  expect(order).toEqual([]);
  if (guard !== null) lock.readDone(guard);
  await Promise.all([change, reader]);
  expect(order).toEqual(['change', 'reader']);
});

test('every I/O callback runs under the graph read lock, however it is reached', async () => {
  let underLock = 0;
  const seen = new Set<string>();
  const unguarded: string[] = [];
  const disk = memoryDisk(4096, {
    onCall: (name) => {
      seen.add(name);
      if (underLock === 0) unguarded.push(name);
    },
  });
  const layer = memoryLayer(disk);
  const { graphLock } = layer;
  const tryRead = graphLock.tryRead.bind(graphLock);
  const readDone = graphLock.readDone.bind(graphLock);
  graphLock.tryRead = () => {
    const guard = tryRead();
    if (guard !== null) underLock++;
    return guard;
  };
  graphLock.readDone = (guard) => {
    underLock--;
    readDone(guard);
  };
  const node = await addNode(layer, { driver: 'memory', 'node-name': 'm', discard: 'unmap' });
  const args: Record<IoCallbackName, readonly unknown[]> = {
    preadv: [0, 512, vec, 0],
    pwritev: [0, 512, vec, 0],
    pwriteZeroes: [0, 512, 0],
    pdiscard: [0, 512],
    flush: [],
    blockStatus: [true, 0, 512],
    truncate: [4096, true, 'off', false],
    pwritevCompressed: [0, 512, vec],
    check: [{ fixLeaks: false, fixErrors: false, report: () => undefined }],
    amend: [{}, false, { update: () => undefined }],
    changeBackingFile: [null],
    makeEmpty: [],
    preadvSnapshot: [0, 512, vec],
    blockStatusSnapshot: [true, 0, 512],
    pdiscardSnapshot: [0, 512],
    copyRangeFrom: [0, 512, async () => true],
    copyRangeTo: [0, 512, { fd: -1, offset: 0 }],
    getLength: [],
    getAllocatedFileSize: [],
    getInfo: [],
    isInserted: [],
    eject: [true],
    lockMedium: [true],
    debugEvent: ['l1_update'],
  };
  for (const name of Object.keys(IO_CALLBACKS) as IoCallbackName[]) {
    const call = wrapped[name] as (...all: readonly unknown[]) => Promise<unknown>;
    await call(node, ...args[name]);
    expect(seen.has(name), name).toBe(true);
    expect(underLock).toBe(0);
  }
  const backend = await layer.createBackend(node, { perm: Perm.all, shared: Perm.all }, owner());
  await backend.preadv(0, 512, vec, 0);
  await backend.pwritev(0, 512, vec, 0);
  await backend.pwriteZeroes(0, 512, 0);
  await backend.pdiscard(0, 512);
  await backend.flush();
  await backend.blockStatus(0, 512);
  await backend.allocationDepth(0, 512);
  await backend.truncate(4096, true, 'off');
  await backend.close();
  await layer.closeAll();
  expect(unguarded).toEqual([]);
  expect(Object.keys(co).sort()).toEqual(Object.keys(IO_CALLBACKS).sort());
});

test('only the I/O path and the table call a driver directly', () => {
  const root = path.resolve(import.meta.dirname, '../../src');
  const names = [...Object.keys(IO_CALLBACKS), ...Object.keys(sync)].join('|');
  const direct = new RegExp(`driver\\.(${names})[!?]?\\.?\\(`);
  const offenders = (readdirSync(root, { recursive: true }) as string[])
    .filter(
      (file) =>
        file.endsWith('.ts') &&
        ![
          'block/graph/length.ts',
          ...['copy-on-read', 'copy-range', 'debug', 'flush', 'in-turn', 'read-write', 'size', 'status'].map(
            (name) => `block/io/${name}.ts`,
          ),
        ].includes(file),
    )
    .filter((file) => direct.test(readFileSync(path.join(root, file), 'utf8')));
  expect(offenders).toEqual([]);
  expect(direct.test('node.driver.preadv!(node, guard)')).toBe(true);
});

test('a request that gave the lock back gets it again before a change that waits for those who wait for it', async () => {
  const lock = new GraphLock();
  const waiting = lock.tryRead()!;
  const guard = lock.tryRead()!;
  let turn = (): void => undefined;
  const order: string[] = [];
  const suspended = lock
    .suspended(
      guard,
      () =>
        new Promise<void>((resolve) => {
          turn = resolve;
        }),
    )
    .then(() => {
      order.push('goes on');
      lock.readDone(guard);
      // The other request has waited for this one.
      lock.readDone(waiting);
    });
  const change = lock.withWrite(() => void order.push('change'));
  await tick();
  turn();
  await Promise.all([suspended, change]);
  expect(order).toEqual(['goes on', 'change']);
});
