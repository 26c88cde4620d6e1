/**
 * One disk, several clients of different makes at once: two of ours that pipeline, and qemu-io, under a random model
 * (test/nbd/model.ts). The image is filled by qemu-io before the daemon opens it, and read by qemu-img after it closed it.
 */

import { execFile, execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { DiskClient } from '../nbd/disk-client.ts';
import { mergeModels, operations, runModel } from '../nbd/model.ts';
import { RawClient } from '../nbd/raw-client.ts';
import { startDaemon } from './daemons.ts';
import { requirePeer } from './requires.ts';

const run = promisify(execFile);
const BLOCK = 4096;
const UNITS = 12;
const CLIENTS = 3;
const SIZE = UNITS * CLIENTS * BLOCK;
/** The part of each unit that belongs to qemu-io. */
const QEMU_IO = 2;

interface Step {
  readonly unit: number;
  /** null: the block is read, and must be what was written last. */
  readonly byte: number | null;
}

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.record({ unit: fc.nat(UNITS - 1), byte: fc.option(fc.nat(255)) }),
  { minLength: 5, maxLength: 30 },
);

/** Runs steps with qemu-io; a read of something else makes it fail. Returns what its blocks hold. */
async function runQemuIo(uri: string, list: readonly Step[], first: number): Promise<Map<number, Buffer>> {
  const bytes = new Map<number, number>(Array.from({ length: UNITS }, (_, unit) => [unit, first]));
  const commands = list.flatMap(({ unit, byte }) => {
    const at = (unit * CLIENTS + QEMU_IO) * BLOCK;
    if (byte === null) return ['-c', `read -P ${bytes.get(unit)} ${at} ${BLOCK}`];
    bytes.set(unit, byte);
    return ['-c', byte === 0 ? `write -z ${at} ${BLOCK}` : `write -P ${byte} ${at} ${BLOCK}`];
  });
  const { stdout } = await run('qemu-io', ['-f', 'raw', uri, ...commands]);
  expect(stdout).not.toMatch(/fail|error/i);
  return new Map([...bytes].map(([unit, byte]) => [unit, Buffer.alloc(BLOCK, byte)]));
}

for (const format of ['raw', 'qcow2'])
  test(`qemu-io and other clients share a ${format} image`, async (context) => {
    requirePeer(context, 'qemu-io', 'qemu-img');
    await fc.assert(
      fc.asyncProperty(
        operations(UNITS),
        operations(UNITS),
        steps,
        fc.integer({ min: 1, max: 255 }),
        async (a, b, io, first) => {
          const daemon = await startDaemon('qblockd', {
            prepare: (dir) => {
              const image = path.join(dir, 'disk');
              execFileSync('qemu-img', ['create', '-q', '-f', format, image, String(SIZE)]);
              const fill = Array.from({ length: UNITS }, (_, unit) => [
                '-c',
                `write -P ${first} ${(unit * CLIENTS + QEMU_IO) * BLOCK} ${BLOCK}`,
              ]).flat();
              execFileSync('qemu-io', ['-f', format, image, ...fill], { stdio: 'ignore' });
            },
            args: [
              ['--blockdev', 'driver=file,node-name=file,filename=$DIR/disk'],
              ['--blockdev', `driver=${format},node-name=disk,file=file`],
              ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd.sock'],
              ['--export', 'type=nbd,id=disk,node-name=disk,writable=on'],
            ].flat(),
          });
          let disk: Buffer;
          try {
            const socket = path.join(daemon.dir, 'nbd.sock');
            const ours = await Promise.all(
              (['simple', 'structured'] as const).map(async (style) =>
                DiskClient.enter(await RawClient.connect(socket), 'disk', style),
              ),
            );
            const models = await Promise.all([
              runModel(ours[0]!, 0, CLIENTS, a, false),
              runModel(ours[1]!, 1, CLIENTS, b, true),
              runQemuIo(`nbd+unix:///disk?socket=${socket}`, io, first),
            ]);
            disk = mergeModels(models, UNITS);
            for (const client of ours) expect((await client.read(0, SIZE)).equals(disk)).toBe(true);
            await Promise.all(ours.map((client) => client.leave()));
            const copy = path.join(daemon.dir, 'copy');
            daemon.process.kill('SIGTERM');
            expect((await daemon.exited).status).toBe(0);
            execFileSync('qemu-img', [
              'convert',
              '-f',
              format,
              '-O',
              'raw',
              path.join(daemon.dir, 'disk'),
              copy,
            ]);
            expect(readFileSync(copy).equals(disk)).toBe(true);
          } finally {
            await daemon.stop();
          }
        },
      ),
      { numRuns: 6 },
    );
  });
