/** Random loads through the nbd driver against scripted servers: every wire format, losses, and damaged replies. */

import { rmSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { createEngine } from '../../src/aio/create-engine.ts';
import { BlockLayer } from '../../src/block/layer.ts';
import { drivers } from '../../src/drivers/table.ts';
import { Command, ExportFlag, NbdError } from '../../src/nbd/protocol/messages.ts';
import { createRandom, type Random } from '../drivers/qcow2/random.ts';
import { makeScratchDir } from '../peers/daemons.ts';
import { closeNbd, openNbd, runLoad } from './disk-load.ts';
import {
  ALL_FLAGS,
  type Script,
  ScriptedServer,
  type ServedConnection,
  type ServerRequest,
} from './scripted-server.ts';

const MiB = 1024 * 1024;
const SEED = Number(process.env.NBD_CLIENT_SEED ?? 1);

function makeLayer(kind: 'auto' | 'threads'): { layer: BlockLayer; close(): Promise<void> } {
  const { engine } = createEngine(kind);
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers,
    report: () => undefined,
  });
  return {
    layer,
    close: async () => {
      await layer.closeAll();
      engine.close();
    },
  };
}

/** Refuses requests without data that are longer than the longest payload. */
function refuseLong(request: ServerRequest, served: ServedConnection): Buffer | undefined {
  const isLong = request.type === Command.WRITE_ZEROES && request.length > 8192;
  return isLong ? served.done(request, NbdError.EINVAL) : undefined;
}

interface Setting {
  readonly name: string;
  readonly script: Script | ((random: Random) => (connection: number) => Script);
  readonly kind?: 'auto' | 'threads';
  readonly unitBytes?: number;
  readonly options?: object;
  readonly mayFail?: boolean;
}

/** A server that now and then does what it was asked, or not, and hangs up. */
function unreliable(flags: number) {
  return (random: Random) => (): Script => {
    let left = 5 + random.below(200);
    return {
      flags,
      request: (request, served) => {
        if (left-- > 0) return undefined;
        if (random.below(2) === 0) served.execute(request);
        return 'close';
      },
    };
  };
}

/** A server whose replies are damaged now and then. Its reads may return wrong data without anybody's knowing. */
function damaging(random: Random): (connection: number) => Script {
  return (connection) => ({
    extended: connection % 2 === 0,
    request: (request, served) => {
      const reply = served.execute(request);
      if (random.below(30) > 0) return reply;
      const at = random.below(Math.min(reply.length, 40));
      switch (random.below(5)) {
        case 0:
          reply[at] = random.below(256);
          return reply;
        case 1:
          return Buffer.concat([reply.subarray(0, at), reply.subarray(at + 1 + random.below(8))]);
        case 2:
          return Buffer.concat([
            reply.subarray(0, at),
            Buffer.alloc(1 + random.below(64), random.below(256)),
            reply.subarray(at),
          ]);
        case 3:
          return Buffer.concat([reply, reply]);
        default:
          served.socket.write(reply.subarray(0, at));
          return 'close';
      }
    },
  });
}

const SETTINGS: readonly Setting[] = [
  { name: 'structured replies', script: {} },
  { name: 'simple replies', script: { structured: false } },
  { name: 'extended headers', script: { extended: true } },
  { name: 'threads', script: {}, kind: 'threads' },
  { name: 'small requests only', script: { blockSizes: [512, 4096, 8192] } },
  { name: 'blocks of 4096', script: { blockSizes: [4096, 4096, 1 << 20] } },
  { name: 'blocks of 1', script: { blockSizes: [1, 4096, 1 << 20] }, unitBytes: 1 },
  { name: 'nothing but reads and writes', script: { flags: ExportFlag.hasFlags } },
  { name: 'no long zero writes', script: { blockSizes: [512, 4096, 8192], request: refuseLong } },
  { name: 'several connections', script: { flags: ALL_FLAGS | ExportFlag.canMultiConn } },
  { name: 'connections lost', script: unreliable(ALL_FLAGS), options: { 'reconnect-delay': 60 } },
  {
    name: 'connections lost, threads',
    script: unreliable(ALL_FLAGS),
    kind: 'threads',
    options: { 'reconnect-delay': 60 },
  },
  {
    name: 'several connections, lost',
    script: unreliable(ALL_FLAGS | ExportFlag.canMultiConn),
    options: { 'reconnect-delay': 60 },
  },
  { name: 'connections lost, without delay', script: unreliable(ALL_FLAGS), mayFail: true },
];

describe('what is read is what was written', () => {
  for (const { name, script, kind = 'auto', unitBytes = 512, options = {}, mayFail = false } of SETTINGS) {
    test(name, async () => {
      const random = createRandom(SEED);
      const dir = makeScratchDir();
      const socketPath = path.join(dir, 's');
      const data = Buffer.alloc(2 * MiB);
      const scripts = typeof script === 'function' ? script(random) : script;
      const server = await ScriptedServer.listen(socketPath, scripts, data);
      const { layer, close } = makeLayer(kind);
      const backend = await openNbd(layer, { server: { type: 'unix', path: socketPath }, ...options });
      const model = Buffer.alloc(data.length);
      try {
        await runLoad(backend, random, { workers: 48, requests: 40, unitBytes, model, mayFail });
        expect(data.equals(model)).toBe(true);
      } finally {
        await closeNbd(layer, backend).catch(() => undefined);
        await server.stop();
        await close();
        rmSync(dir, { recursive: true });
      }
    });
  }
});

describe('damaged replies', () => {
  for (let round = 0; round < 4; round++) {
    test(`seed ${SEED + round}: requests end, and nothing is left behind`, async () => {
      const random = createRandom(SEED + round);
      const dir = makeScratchDir();
      const socketPath = path.join(dir, 's');
      const server = await ScriptedServer.listen(socketPath, damaging(random), Buffer.alloc(MiB));
      const { layer, close } = makeLayer(round % 2 === 0 ? 'auto' : 'threads');
      const delay = round < 2 ? 2 : 0;
      const backend = await openNbd(layer, {
        server: { type: 'unix', path: socketPath },
        'reconnect-delay': delay,
      });
      try {
        // The content means nothing here: the workers are stopped by the first wrong read.
        const load = { workers: 1, requests: 40, unitBytes: 512, model: Buffer.alloc(MiB), mayFail: true };
        const outcomes = await Promise.allSettled(
          Array.from({ length: 16 }, () => runLoad(backend, random, load)),
        );
        for (const outcome of outcomes)
          if (outcome.status === 'rejected') expect(String(outcome.reason)).toMatch(/wrong/);
      } finally {
        await closeNbd(layer, backend).catch(() => undefined);
        await server.stop();
        await close();
        rmSync(dir, { recursive: true });
      }
    });
  }
});
