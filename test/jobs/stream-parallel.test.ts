/** Two stream jobs on one chain: the lower one ends while the upper one makes its last changes. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import type { BlockDriver } from '../../src/block/contract/driver.ts';
import type { BlockNode } from '../../src/block/graph/node.ts';
import { wrapped } from '../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode } from '../../src/block/open/open.ts';
import { drivers } from '../../src/drivers/table.ts';
import { type Job, JobTable } from '../../src/jobs/job-common.ts';
import { startStream } from '../../src/jobs/stream.ts';
import { requirePeer } from '../peers/requires.ts';

const SIZE = 256 * 1024;

test('the upper job gets what is below it in the end', async (context) => {
  requirePeer(context, 'qemu-img');
  const dir = mkdtempSync(path.join(tmpdir(), 'qb-stream-'));
  let letGo = (): void => undefined;
  const held = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  const turn = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 1));
  const begun = new Set<string>();
  const qcow2: BlockDriver = {
    ...(drivers.qcow2 as BlockDriver),
    async changeBackingFile(node, guard, name) {
      begun.add(node.name);
      if (node.name === 'a') await held;
      else while (!begun.has('a')) await turn();
      await drivers.qcow2!.changeBackingFile!(node as never, guard, name);
    },
  };
  const layer = new BlockLayer({
    engine: createEngine('threads').engine,
    events: { emit: () => undefined },
    drivers: { ...drivers, qcow2 },
    report: () => undefined,
  });
  const bugs: unknown[] = [];
  const table = new JobTable({ emit: () => undefined }, (error) => bugs.push(error));
  const names = ['d', 'c', 'b', 'a'];
  const nodes: Record<string, BlockNode> = {};
  for (const [index, name] of names.entries()) {
    const file = path.join(dir, name);
    const below = names[index - 1];
    const backing = below === undefined ? [] : ['-b', path.join(dir, below), '-F', 'qcow2'];
    execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', ...backing, file, `${SIZE}`]);
    nodes[name] = await addNode(layer, {
      driver: 'qcow2',
      'node-name': name,
      file: { driver: 'file', filename: file },
      ...(below !== undefined && { backing: below }),
    });
    const memory = allocateIoMemory(65536);
    memory.buf.fill(index + 1);
    await wrapped.pwritev(nodes[name]!, index * 65536, 65536, vectorOf(memory), 0);
  }
  const { a, b, c, d } = nodes as { a: BlockNode; b: BlockNode; c: BlockNode; d: BlockNode };
  const stream = (id: string, device: BlockNode, bottom: BlockNode): Promise<Job> =>
    startStream(table, {
      id,
      device,
      bottom,
      backingFile: null,
      maskProtocol: false,
      speed: 0,
      onError: 'report',
      filterName: null,
    });
  const lower = await stream('lower', c, d);
  const upper = await stream('upper', a, b);
  while (begun.size < 2) await turn();
  // The lower one gets to its change of the graph, and waits for the lock.
  for (let i = 0; i < 30; i++) await turn();
  letGo();
  while (table.jobs.length > 0) await turn();
  expect([bugs, lower.error, upper.error]).toEqual([[], null, null]);
  expect(a.child('backing')?.node).toBe(c);
  const memory = allocateIoMemory(SIZE);
  await wrapped.preadv(a, 0, SIZE, vectorOf(memory), 0);
  expect([0, 1, 2, 3].map((index) => memory.buf[index * 65536])).toEqual([1, 2, 3, 4]);
  await layer.closeAll();
  layer.engine.close();
  rmSync(dir, { recursive: true });
});
