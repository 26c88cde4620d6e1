/** The nbd driver and servers whose extents end anywhere, with block sizes that they name or do not name. */

import { rmSync } from 'node:fs';
import path from 'node:path';
import { afterAll, afterEach, expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import { allocateIoMemory, vectorOf } from '../../src/aio/memory.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { drivers } from '../../src/drivers/table.ts';
import { Command } from '../../src/nbd/protocol/messages.ts';
import { makeScratchDir } from '../peers/daemons.ts';
import { closeNbd, openNbd } from './disk-load.ts';
import { type Script, ScriptedServer, type ServedConnection, type ServerRequest } from './scripted-server.ts';

const dir = makeScratchDir();
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const endings: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const end of endings.splice(0).reverse()) await end();
});

const HOLE = 3;
const DISK_BYTES = 8192;
/** Data in [1000, 1010) and [5000, 5001). */
const EXTENTS: readonly (readonly [end: number, flags: number])[] = [
  [1000, HOLE],
  [1010, 0],
  [5000, HOLE],
  [5001, 0],
  [DISK_BYTES, HOLE],
];

function tellExtent(request: ServerRequest, served: ServedConnection): Buffer | undefined {
  if (request.type !== Command.BLOCK_STATUS) return undefined;
  const [end, flags] = EXTENTS.find(([limit]) => limit > request.offset)!;
  return served.statusReply(request, Math.min(end - request.offset, request.length), flags);
}

async function setUp(script: Script) {
  const socketPath = path.join(dir, `s${Math.random().toString(36).slice(2)}`);
  const data = Buffer.alloc(DISK_BYTES);
  data.fill(1, 1000, 1010);
  data.fill(2, 5000, 5001);
  const seen: ServerRequest[] = [];
  const server = await ScriptedServer.listen(
    socketPath,
    {
      ...script,
      request: (request, served) => {
        seen.push(request);
        return tellExtent(request, served);
      },
    },
    data,
  );
  endings.push(() => server.stop());
  const { engine } = createEngine('auto');
  const layer = new BlockLayer({ engine, events: { emit: () => undefined }, drivers });
  const backend = await openNbd(layer, { server: { type: 'unix', path: socketPath } });
  endings.push(async () => {
    await closeNbd(layer, backend);
    await layer.closeAll();
    engine.close();
  });
  return { backend, seen, data };
}

async function extentsOf(backend: Awaited<ReturnType<typeof setUp>>['backend']): Promise<unknown[]> {
  const found: unknown[] = [];
  for (let at = 0; at < DISK_BYTES; ) {
    const { bytes, zero } = await backend.blockStatus(at, DISK_BYTES - at);
    found.push([at, bytes, zero ? 'zero' : 'data']);
    at += bytes;
  }
  return found;
}

test('a server that names no block size: extents to the byte, and a small write is one', async () => {
  const { backend, seen, data } = await setUp({});
  expect(backend.requestAlignmentBytes).toBe(1);
  expect(await extentsOf(backend)).toEqual([
    [0, 1000, 'zero'],
    [1000, 10, 'data'],
    [1010, 3990, 'zero'],
    [5000, 1, 'data'],
    [5001, 3191, 'zero'],
  ]);
  seen.length = 0;
  const memory = allocateIoMemory(100);
  memory.buf.fill(9);
  await backend.pwritev(50, 100, vectorOf(memory), 0);
  expect(seen.map(({ type, offset, length }) => [type, offset, length])).toEqual([[Command.WRITE, 50, 100]]);
  expect(data.subarray(50, 150).every((byte) => byte === 9)).toBe(true);
});

test('a server that does not keep to the block size it names: a block with data in it is data', async () => {
  const { backend, seen } = await setUp({ blockSizes: [512, 4096, 1024 * 1024] });
  expect(backend.requestAlignmentBytes).toBe(512);
  expect(await extentsOf(backend)).toEqual([
    [0, 512, 'zero'],
    [512, 512, 'data'],
    [1024, 3584, 'zero'],
    [4608, 512, 'data'],
    [5120, 3072, 'zero'],
  ]);
  expect(seen.every(({ offset, length }) => offset % 512 === 0 && length % 512 === 0)).toBe(true);
});
