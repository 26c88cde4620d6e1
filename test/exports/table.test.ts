/** The export table over a block layer with null nodes: ids, life cycles, events, errors. */

import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { BlockExportOptions } from '../../schema/generated/types.ts';
import { createEngine } from '../../src/aio/create-engine.ts';
import { drained } from '../../src/block/graph/drain.ts';
import type { BlockNode } from '../../src/block/graph/node.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { addNode as blockdevAdd } from '../../src/block/open/open.ts';
import { nullCo } from '../../src/drivers/protocols/null.ts';
import { ExportTable } from '../../src/exports/table.ts';
import { Command, Option } from '../../src/nbd/protocol/messages.ts';
import { ObjectTree } from '../../src/objects/tree.ts';
import { infoPayload, RawClient } from '../nbd/raw-client.ts';

let dir: string;
let socketPath: string;
let layer: BlockLayer;
let objects: ObjectTree;
let exports: ExportTable;
let events: string[];

function addNode(name: string, options: Record<string, unknown> = {}): Promise<BlockNode> {
  return blockdevAdd(layer, {
    driver: 'null-co',
    'node-name': name,
    size: 1048576,
    'read-zeroes': true,
    ...options,
  });
}

beforeEach(async () => {
  dir = mkdtempSync(path.join(tmpdir(), 'qbe-'));
  socketPath = path.join(dir, 'nbd.sock');
  events = [];
  layer = new BlockLayer({
    engine: createEngine('auto').engine,
    events: { emit: (name, data) => void events.push(`${name} ${(data as { id?: string }).id}`) },
    drivers: { 'null-co': nullCo as never },
  });
  objects = new ObjectTree();
  exports = new ExportTable(layer, objects);
});

afterEach(async () => {
  await exports.closeAll();
  layer.engine.close();
  rmSync(dir, { recursive: true, force: true });
});

function start(options: { readonly 'max-connections'?: number } = {}): Promise<void> {
  return exports.startNbdServer({ addr: { type: 'unix', path: socketPath }, ...options }, 'qmp');
}

type NbdOptions = Extract<BlockExportOptions, { type: 'nbd' }>;

function add(id: string, options: Partial<NbdOptions> = {}): Promise<void> {
  return exports.add({ type: 'nbd', id, 'node-name': 'n', ...options });
}

async function enter(name: string): Promise<RawClient> {
  const client = await RawClient.connect(socketPath);
  await client.enter(name);
  return client;
}

describe('the NBD server', () => {
  test('is started and stopped once', async () => {
    await expect(exports.stopNbdServer()).rejects.toThrow('NBD server not running');
    await start();
    expect(exports.nbdAddresses).toEqual([{ type: 'unix', path: socketPath }]);
    await expect(start()).rejects.toThrow('NBD server already running');
    await exports.stopNbdServer();
    await expect(exports.stopNbdServer()).rejects.toThrow('NBD server not running');
    await start();
  });

  test('two starts at once: one wins', async () => {
    const results = await Promise.allSettled([start(), start()]);
    expect(results.map((result) => result.status)).toEqual(['fulfilled', 'rejected']);
  });

  test('its socket is for its user only, and goes with it', async () => {
    await start();
    expect(statSync(socketPath).mode & 0o777).toBe(0o600);
    await exports.stopNbdServer();
    expect(() => statSync(socketPath)).toThrow('ENOENT');
  });

  test('does not start on what is not there', async () => {
    const missing = { type: 'unix', path: path.join(dir, 'missing/nbd.sock') } as const;
    await expect(exports.startNbdServer({ addr: missing }, 'qmp')).rejects.toThrow(
      'No such file or directory',
    );
    await expect(exports.startNbdServer({ addr: { type: 'fd', str: '0' } }, 'qmp')).rejects.toThrow(
      'only QEMU supports file descriptor passing',
    );
    await expect(exports.startNbdServer({ addr: missing, 'tls-creds': 'nobody' }, 'qmp')).rejects.toThrow(
      "No TLS credentials with id 'nobody'",
    );
    await start();
  });
});

describe('adding', () => {
  beforeEach(async () => {
    await addNode('n');
    await addNode('ro', { 'read-only': true });
  });

  test('needs a server', async () => {
    await expect(add('e')).rejects.toThrow('NBD server not running');
    expect(exports.query()).toEqual([]);
    await start();
    await add('e');
  });

  test('checks in the order of the original', async () => {
    await start();
    await add('e');
    const cases: [Partial<NbdOptions> & { id: string }, string][] = [
      [{ id: '1a', 'node-name': 'nope' }, 'Invalid block export id'],
      [{ id: '', 'node-name': 'nope' }, 'Invalid block export id'],
      [{ id: 'e', 'node-name': 'nope' }, "Block export id 'e' is already in use"],
      [{ id: 'f', 'node-name': 'nope', writable: true }, "Cannot find device='' nor node-name='nope'"],
      [
        { id: 'f', 'node-name': 'ro', writable: true, iothread: 'x' },
        'Cannot export read-only node as writable',
      ],
      [{ id: 'f', iothread: 'x', name: 'x'.repeat(4097) }, 'iothread "x" not found'],
      [
        { id: 'f', name: 'x'.repeat(4097), description: 'y'.repeat(4097) },
        `export name '${'x'.repeat(4097)}' too long`,
      ],
      [{ id: 'f', description: 'y'.repeat(4097) }, `description '${'y'.repeat(4097)}' too long`],
      [{ id: 'f', bitmaps: ['b'] }, "NBD server already has export named 'n'"],
      [{ id: 'f', name: 'f', bitmaps: ['b'] }, "Bitmap 'b' is not found"],
      [{ id: 'f', name: 'f', bitmaps: [{ node: 'ro', name: 'b' }] }, "Dirty bitmap 'b' not found"],
      [{ id: 'f', name: 'f', bitmaps: [{ node: 'nope', name: 'b' }] }, "Node 'nope' not found"],
    ];
    for (const [{ id, ...options }, text] of cases) await expect(add(id, options)).rejects.toThrow(text);
    expect(exports.query().map(({ id }) => id)).toEqual(['e']);
    // None of the failures left anything behind.
    await exports.remove('e');
    await layer.deleteNode('n');
  });

  test('two exports with one id at once: one wins', async () => {
    await start();
    const results = await Promise.allSettled([add('e', { name: 'a' }), add('e', { name: 'b' })]);
    expect(results.map((result) => result.status)).toEqual(['fulfilled', 'rejected']);
    expect(exports.query()).toHaveLength(1);
  });

  test('the longest texts fit', async () => {
    await start();
    await add('e', { name: 'x'.repeat(4096), description: 'y'.repeat(4096) });
    const client = await RawClient.connect(socketPath);
    await client.greet();
    expect(await client.ask(Option.LIST)).toEqual([
      `LIST SERVER "${'x'.repeat(4096)}" "${'y'.repeat(4096)}"`,
      'LIST ACK',
    ]);
    client.close();
  });

  test('a fixed iothread cannot move a node that is in use', async () => {
    await objects.add({ 'qom-type': 'iothread', id: 'io0' });
    await start();
    await add('a', { iothread: 'io0', 'fixed-iothread': true });
    await add('b', { name: 'b', iothread: 'io0', 'fixed-iothread': true });
    await exports.remove('a');
    await exports.remove('b');
    await add('c');
    await add('d', { name: 'd', iothread: 'io0' });
    await expect(add('e', { name: 'e', iothread: 'io0', 'fixed-iothread': true })).rejects.toThrow(
      'Cannot change iothread of active block backend',
    );
  });

  test('the old command makes an export with its name as id, writable if the node is', async () => {
    await start();
    await exports.addNbd({ device: 'n', writable: true });
    await exports.addNbd({ device: 'ro', name: 'other', writable: true, description: 'text' });
    await expect(exports.addNbd({ device: 'nope' })).rejects.toThrow(
      "Cannot find device='nope' nor node-name='nope'",
    );
    await expect(exports.addNbd({ device: 'n' })).rejects.toThrow("Block export id 'n' is already in use");
    await expect(exports.addNbd({ device: 'n', name: 'b', bitmap: 'x' })).rejects.toThrow(
      "Bitmap 'x' is not found",
    );
    expect(exports.query()).toEqual([
      { 'node-name': 'ro', 'shutting-down': false, type: 'nbd', id: 'other' },
      { 'node-name': 'n', 'shutting-down': false, type: 'nbd', id: 'n' },
    ]);
    const client = await RawClient.connect(socketPath);
    await client.greet();
    expect(await client.ask(Option.INFO, infoPayload('n'))).toContain(
      'INFO INFO EXPORT size=1048576 flags=110101101101',
    );
    expect(await client.ask(Option.INFO, infoPayload('other'))).toContain(
      'INFO INFO EXPORT size=1048576 flags=10100001111',
    );
    client.close();
  });

  test('an export keeps its node from being deleted and resized', async () => {
    await start();
    await add('e');
    await expect(layer.deleteNode('n')).rejects.toThrow('Node n is in use');
    await exports.remove('e');
    await layer.deleteNode('n');
  });

  test('with max-connections 1 there is no promise about several connections', async () => {
    await start({ 'max-connections': 1 });
    await add('e');
    const client = await RawClient.connect(socketPath);
    await client.greet();
    expect(await client.ask(Option.INFO, infoPayload('n'))).toContain(
      'INFO INFO EXPORT size=1048576 flags=10000001111',
    );
    client.close();
  });
});

describe('removing', () => {
  beforeEach(async () => {
    await addNode('n');
    await start();
    await add('e', { writable: true });
  });

  test('tells when it is done', async () => {
    await exports.remove('e');
    expect(events).toEqual(['BLOCK_EXPORT_DELETED e']);
    await expect(exports.remove('e')).rejects.toThrow("Export 'e' is not found");
    await add('e');
  });

  test('safely, not while a client is connected', async () => {
    const client = await enter('n');
    await expect(exports.remove('e', 'safe')).rejects.toThrow("export 'e' still in use");
    expect(await client.transact({ type: Command.FLUSH })).toBe('simple #1 ok');
    client.request({ type: Command.DISC });
    expect(await client.end()).toBe('EOF');
    await expect
      .poll(() =>
        exports.remove('e', 'safe').then(
          () => true,
          () => false,
        ),
      )
      .toBe(true);
  });

  test('hard, with the clients', async () => {
    const client = await enter('n');
    await exports.remove('e', 'hard');
    expect(await client.end()).toBe('EOF');
    await expect.poll(() => events).toEqual(['BLOCK_EXPORT_DELETED e']);
    expect(exports.query()).toEqual([]);
  });

  test('hard, with requests under way: it is shutting down until they have ended', async () => {
    await addNode('slow', { 'latency-ns': 300_000_000 });
    await add('s', { 'node-name': 'slow' });
    const client = await enter('slow');
    client.request({ type: Command.READ, length: 4096n });
    await expect.poll(() => layer.findNode('slow')?.inFlight).toBe(1);
    await exports.remove('s', 'hard');
    expect(exports.query()[0]).toEqual({ 'node-name': 'slow', 'shutting-down': true, type: 'nbd', id: 's' });
    await expect(exports.remove('s', 'hard')).rejects.toThrow("Export 's' is already shutting down");
    await expect(add('s')).rejects.toThrow("Block export id 's' is already in use");
    await expect.poll(() => events).toEqual(['BLOCK_EXPORT_DELETED s']);
    await layer.deleteNode('slow');
  });

  test('stopping the server removes all exports, oldest first', async () => {
    await add('b', { name: 'b' });
    await add('a', { name: 'a' });
    const client = await enter('b');
    await exports.stopNbdServer();
    expect(events).toEqual(['BLOCK_EXPORT_DELETED e', 'BLOCK_EXPORT_DELETED b', 'BLOCK_EXPORT_DELETED a']);
    expect(exports.query()).toEqual([]);
    expect(await client.end()).toBe('EOF');
    await layer.deleteNode('n');
  });
});

test('a drained section holds the clients of a node back', async () => {
  const node = await addNode('n');
  await start();
  await add('e');
  const client = await enter('n');
  let reply: string | null = null;
  await drained(node, async () => {
    client.request({ type: Command.READ, length: 512n });
    void client.reply(512).then((text) => {
      reply = text;
    });
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(reply).toBeNull();
    expect(node.inFlight).toBe(0);
  });
  await expect.poll(() => reply).toBe('simple #1 ok [0*512]');
  client.close();
});

test('two hundred exports', async () => {
  await start();
  for (let i = 0; i < 200; i++) {
    await addNode(`n${i}`);
    await add(`e${i}`, { 'node-name': `n${i}` });
  }
  const client = await RawClient.connect(socketPath);
  await client.greet();
  expect(await client.ask(Option.LIST)).toHaveLength(201);
  client.close();
});

test('a stale socket makes way', async () => {
  await addNode('n');
  await start();
  await exports.stopNbdServer();
  writeFileSync(path.join(dir, 'other'), '');
  await start();
  await add('e');
  const client = await enter('n');
  client.close();
});
