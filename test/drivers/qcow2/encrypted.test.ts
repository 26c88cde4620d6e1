/** Encrypted images whose data are encrypted in other threads: other requests run between a write's plan and its data. */

import { rmSync } from 'node:fs';
import path from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterAll, expect, test } from 'vitest';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { allocateIoMemory, type IoVector, vectorOf } from '../../../src/aio/memory.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import { limitMs } from '../../patience.ts';
import { requirePeer } from '../../peers/requires.ts';
import { createOurs, type FormatModel, formatModelRun } from '../formats/format-model.ts';
import { scratch } from './open-layer.ts';
import { createRandom } from './random.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const RUNS = Number(process.env.MODEL_RUNS ?? 1);
const FIRST_SEED = Number(process.env.MODEL_SEED ?? 1);
const KIB = 1024;
const MIB = KIB * KIB;
/** The slowest of the ciphers: its writes are under way for long, and go to threads from 16 KiB on. */
const ENCRYPTION = {
  'encrypt.format': 'luks',
  'encrypt.key-secret': 's',
  'encrypt.iter-time': '10',
  'encrypt.cipher-alg': 'serpent-256',
} as const;
const OPENED = { encrypt: { format: 'luks', 'key-secret': 's' } } as const;
const COMMON = {
  ...({ format: 'qcow2', maker: 'ours', steps: 20, secret: 'secret', node: OPENED } as const),
  ...{ peerOptions: 'encrypt.key-secret=s', check: true, alignmentBytes: 1 },
} as const;
const CASES: Readonly<Record<string, FormatModel>> = {
  'the usual clusters': {
    ...COMMON,
    ...{ create: ENCRYPTION, sizeBytes: 4 * MIB, blockBytes: 64 * KIB, engine: 'io_uring', resize: true },
  },
  'small clusters': {
    ...COMMON,
    ...{ create: { ...ENCRYPTION, cluster_size: '4096' }, sizeBytes: MIB, blockBytes: 32 * KIB },
    engine: 'threads',
  },
};

test.each(Object.entries(CASES))(
  'a random guest: %s',
  async (_, settings) => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++)
      expect(await formatModelRun(seed, settings, folder)).toBeNull();
  },
  limitMs(120_000 + 60_000 * RUNS),
);

function filled(bytes: number, value: number): IoVector {
  const memory = allocateIoMemory(bytes);
  memory.buf.fill(value);
  return vectorOf(memory);
}

test(
  'what a discard takes away is given to nobody while a write to it is under way',
  async (context) => {
    requirePeer(context, 'qemu-img');
    const file = path.join(folder, 'late.qcow2');
    await createOurs('qcow2', file, { ...ENCRYPTION, size: String(64 * MIB) }, 'secret');
    const { engine } = createEngine('auto');
    const layer = new BlockLayer({
      ...{ engine, drivers },
      events: { emit: () => undefined },
      secret: () => Buffer.from('secret'),
    });
    const options = {
      driver: 'qcow2',
      file: { driver: 'file', filename: file },
      discard: 'unmap',
      ...OPENED,
    };
    const node = await openFromOptions(layer, options);
    const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };
    const backend = await layer.createBackend(node, { perm: Perm.all, shared: Perm.all }, owner);
    const random = createRandom(FIRST_SEED);
    try {
      for (let round = 0; round < 3 * RUNS; round++) {
        const victim = random.below(16) * 2 * MIB;
        await backend.pwritev(victim, MIB, filled(MIB, 1), 0);
        // In place, and long under way.
        const late = backend.pwritev(victim, MIB, filled(MIB, 2), 0);
        for (let turns = random.below(4); turns > 0; turns--) await nextTurn();
        await backend.pdiscard(victim, MIB);
        await backend.flush();
        // New clusters, in pieces that are written at once.
        const other = 32 * MIB + random.below(16) * 2 * MIB;
        for (let at = 0; at < MIB; at += 4 * KIB) {
          await backend.pdiscard(other + at, 4 * KIB);
          await backend.pwritev(other + at, 4 * KIB, filled(4 * KIB, 3), 0);
        }
        await backend.flush();
        await late;
        const memory = allocateIoMemory(MIB);
        await backend.preadv(other, MIB, vectorOf(memory), 0);
        expect(memory.buf.every((byte) => byte === 3)).toBe(true);
      }
    } finally {
      await backend.close();
      await layer.closeAll();
      engine.close();
    }
  },
  limitMs(120_000 + 60_000 * RUNS),
);
