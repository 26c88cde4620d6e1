/**
 * commit and rebase as the tool runs them, on files that are given as drivers: for disks that record what is written, or
 * fail. Images are called top, base and other; what they show is looked at from files afterwards.
 */

import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import { PLAIN_DEFINITIONS } from '../../../src/block/contract/definitions.ts';
import type { BlockDriver } from '../../../src/block/contract/driver.ts';
import { BlockLayer, READ_ONLY_USE } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import type { ToolEnvironment, ToolImage } from '../../../src/tools/common/environment.ts';
import type { ToolOutput } from '../../../src/tools/common/output.ts';
import { commit } from '../../../src/tools/img/chain/commit.ts';
import { rebase } from '../../../src/tools/img/chain/rebase.ts';
import { checkImage, testLayer } from '../../drivers/qcow2/open-layer.ts';

export type Name = 'top' | 'base' | 'other';
export const NAMES: readonly Name[] = ['top', 'base', 'other'];
export type Files = Readonly<Record<Name, Buffer>>;

const SIZE = 256 * 1024;

/** Three images: top on base, and other, which differs from base. */
export function makeImages(folder: string, clusterBytes: number): Files {
  const img = (...words: string[]) => execFileSync('qemu-img', words, { cwd: folder, stdio: 'pipe' });
  const io = (file: string, ...lines: string[]) =>
    execFileSync('qemu-io', ['-f', 'qcow2', ...lines.flatMap((line) => ['-c', line]), file], {
      cwd: folder,
      stdio: 'pipe',
    });
  const options = ['-o', `cluster_size=${clusterBytes}`];
  img('create', '-q', '-f', 'qcow2', ...options, 'base', String(SIZE));
  io('base', 'write -P 1 0 64k', 'write -P 2 100k 40k', 'write -z 200k 8k');
  img('create', '-q', '-f', 'qcow2', ...options, 'other', String(SIZE - 8192));
  io('other', 'write -P 1 0 32k', 'write -P 9 32k 32k', 'write -P 2 96k 48k', 'write -P 3 180k 8k');
  img('create', '-q', '-f', 'qcow2', ...options, '-b', 'base', '-F', 'qcow2', 'top');
  io('top', 'write -P 5 16k 16k', 'write -z 104k 8k', 'write -P 6 228k 20k');
  return Object.fromEntries(NAMES.map((name) => [name, readFileSync(path.join(folder, name))])) as Files;
}

interface Run {
  /** Throws what the command throws. */
  command(): Promise<void>;
  close(): Promise<void>;
}

const QUIET: ToolOutput = {
  program: 'tool',
  command: 'tool',
  errorFormat: 'human',
  print: () => undefined,
  flush: () => undefined,
  error: () => undefined,
  warn: () => undefined,
  note: () => undefined,
  tell: () => undefined,
  lost: () => 0,
};

/** A run of the command on disks that the drivers are; the new backing image is the file in the folder: it is only read. */
export function startRun(
  kind: 'commit' | 'rebase' | 'rebase to nothing',
  folder: string,
  disks: Readonly<Record<Name, BlockDriver>>,
): Run {
  const { engine } = createEngine('threads');
  const own = Object.fromEntries(
    NAMES.map((name) => [
      `disk-${name}`,
      { ...disks[name], name: `disk-${name}`, reopenPrepare: () => Promise.resolve(null) } as BlockDriver,
    ]),
  );
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers: { ...drivers, ...own },
    definitions: PLAIN_DEFINITIONS,
    report: () => undefined,
  });
  const images = new Set<ToolImage>();
  const env: ToolEnvironment = {
    ...{ layer, images, objects: null, untrusted: false, output: QUIET },
    close: () => Promise.resolve(),
  };
  const context = { output: QUIET, environment: () => env };
  const top = `json:{"driver":"qcow2","file":{"driver":"disk-top"},"backing":{"driver":"qcow2","file":{"driver":"disk-base"}}}`;
  return {
    async command() {
      if (kind === 'commit') await commit(context, ['-q', top]);
      else if (kind === 'rebase')
        await rebase(context, ['-b', path.join(folder, 'other'), '-F', 'qcow2', top]);
      else await rebase(context, ['-b', '', top]);
    },
    async close() {
      for (const image of images) await image.close().catch(() => undefined);
      await layer.closeAll().catch(() => undefined);
      engine.close();
    },
  };
}

/** What top shows, with whichever backing image its header names; or what is wrong. */
export async function shown(folder: string, files: Files): Promise<Buffer | string> {
  for (const name of NAMES) {
    const file = path.join(folder, name);
    if (readFileSync(file).equals(files[name])) continue;
    writeFileSync(file, files[name]);
    const { status, output } = checkImage(file);
    if (status !== 0 && status !== 3) return `${name}: ${output}`;
  }
  const info = execFileSync('qemu-img', ['info', '--output=json', 'top'], { cwd: folder, encoding: 'utf8' });
  const { 'backing-filename': backing = null } = JSON.parse(info) as { 'backing-filename'?: string };
  const below = backing === null ? null : backing.includes('other') ? 'other' : 'base';
  const { layer, close } = testLayer();
  try {
    const image = (name: Name): Record<string, unknown> => ({
      driver: 'qcow2',
      file: { driver: 'file', filename: path.join(folder, name) },
      'read-only': true,
    });
    const options = { ...image('top'), backing: below === null ? null : { ...image(below), backing: null } };
    const node = await openFromOptions(layer, options as never);
    const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };
    const backend = await layer.createBackend(node, READ_ONLY_USE, owner);
    const memory = allocateIoMemory(SIZE);
    await backend.preadv(0, SIZE, vectorOf(memory), 0);
    await backend.close();
    return Buffer.from(memory.buf);
  } finally {
    await close();
  }
}
