/**
 * One model run over an image of any format: a random guest with several requests at once, compared byte for byte
 * with a Buffer. The image is closed and opened again in between. At the end the original must read the same content,
 * and find nothing in its check where it has one.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { createEngine } from '../../../src/aio/create-engine.ts';
import type { EngineKind } from '../../../src/aio/engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import { Perm, Req } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import { peer } from '../qcow2/open-layer.ts';
import { createRandom, type Random } from '../qcow2/random.ts';

export interface FormatModel {
  readonly format: string;
  /** Values of creation options by name. */
  readonly create: Readonly<Record<string, string>>;
  /** Who makes the image. */
  readonly maker: 'original' | 'ours';
  readonly sizeBytes: number;
  readonly engine: EngineKind;
  /** More options of the node. */
  readonly node?: Readonly<Record<string, unknown>>;
  /** Length of a backing file of the same format, full of data; absent: none. */
  readonly backingBytes?: number;
  readonly resize?: boolean;
  /** Requests are aligned to this many bytes; default: sometimes to one. */
  readonly alignmentBytes?: number;
  /** Granularity that matters for the format. */
  readonly blockBytes: number;
  readonly steps: number;
  /** `qemu-img check` knows the format. */
  readonly check?: boolean;
  /** How the original opens it, besides `driver`; default: nothing more. */
  readonly peerOptions?: string;
  /** What the secret `s` holds, for encrypted images. */
  readonly secret?: string;
}

interface Disk {
  readonly node: BlockNode;
  readonly backend: BlockBackend;
  close(): Promise<void>;
}

const OWNER = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };

async function openDisk(
  file: string,
  { engine: kind, format, node: extra = {}, secret = '' }: FormatModel,
): Promise<Disk> {
  const { engine } = createEngine(kind);
  const layer = new BlockLayer({
    ...{ engine, drivers },
    events: { emit: () => undefined },
    secret: () => Buffer.from(secret),
  });
  const node = await openFromOptions(layer, {
    driver: format,
    'node-name': 'disk',
    file: { driver: 'file', filename: file },
    discard: 'unmap',
    ...extra,
  });
  const backend = await layer.createBackend(node, { perm: Perm.all, shared: Perm.all }, OWNER);
  return {
    node,
    backend,
    close: async () => {
      await backend.close();
      await layer.closeAll();
      engine.close();
    },
  };
}

/** Makes an image with this project's own code. */
export async function createOurs(
  format: string,
  file: string,
  values: Readonly<Record<string, string>>,
  secret = '',
): Promise<void> {
  const { engine } = createEngine('auto');
  const layer = new BlockLayer({
    ...{ engine, drivers },
    events: { emit: () => undefined },
    secret: () => Buffer.from(secret),
  });
  try {
    const driver = await layer.driver(format);
    await driver!.creation!.createFile(layer, file, values, { update: () => undefined });
  } finally {
    await layer.closeAll();
    engine.close();
  }
}

/** Arguments of the original's tools that give them the secret. */
function secretOf({ secret }: FormatModel): readonly string[] {
  return secret === undefined ? [] : ['--object', `secret,id=s,data=${secret}`];
}

/** Arguments of the original's tools that name the image. */
function imageOf(settings: FormatModel, file: string): readonly string[] {
  const { format, peerOptions } = settings;
  const options = peerOptions === undefined ? '' : `,${peerOptions}`;
  return [...secretOf(settings), '--image-opts', `driver=${format},file.filename=${file}${options}`];
}

async function createImage(
  settings: FormatModel,
  file: string,
  bytes: number,
  backing: string | null,
): Promise<void> {
  const { format, create, maker } = settings;
  if (maker === 'ours') {
    const more = backing === null ? {} : { backing_file: backing, backing_fmt: format };
    await createOurs(format, file, { ...create, ...more, size: String(bytes) }, settings.secret);
    return;
  }
  const text = Object.entries(create).map(([name, value]) => `${name}=${value}`);
  const options = text.length === 0 ? [] : ['-o', text.join(',')];
  const below = backing === null ? [] : ['-b', backing, '-F', format];
  peer(
    'qemu-img',
    'create',
    '-q',
    ...secretOf(settings),
    '-f',
    format,
    ...options,
    ...below,
    file,
    String(bytes),
  );
}

async function request(disk: Disk, model: Buffer, random: Random, from: number, to: number): Promise<void> {
  const { backend } = disk;
  const bytes = to - from;
  const kind = random.below(12);
  if (kind >= 10) {
    await backend.pwriteZeroes(from, bytes, kind === 10 ? Req.mayUnmap : 0);
    model.fill(0, from, to);
  } else if (kind === 9) {
    await backend.pdiscard(from, bytes);
    await backend.pwriteZeroes(from, bytes, Req.mayUnmap);
    model.fill(0, from, to);
  } else if (kind >= 7) {
    const memory = allocateIoMemory(bytes);
    await backend.preadv(from, bytes, vectorOf(memory), 0);
    if (!memory.buf.equals(model.subarray(from, to))) throw new Error(`read ${from}+${bytes} differs`);
  } else {
    const memory = allocateIoMemory(bytes);
    memory.buf.fill(1 + random.below(255));
    await backend.pwritev(from, bytes, vectorOf(memory), kind === 1 ? Req.fua : 0);
    memory.buf.copy(model, from);
  }
}

async function batch(disk: Disk, model: Buffer, random: Random, settings: FormatModel): Promise<void> {
  const requests: Promise<void>[] = [];
  const { blockBytes, alignmentBytes = 1 } = settings;
  const unit = Math.max(alignmentBytes, random.pick([1, 512, 512, 4096, blockBytes]));
  const units = Math.floor(model.length / unit);
  if (units === 0) return;
  const spread = Math.max(1, Math.floor((2 * blockBytes) / unit));
  let at = random.below(units);
  for (let left = 1 + random.below(8); left > 0 && at < units; left--) {
    const most = random.below(4) === 0 ? 2 * spread : random.below(2) === 0 ? 8 : spread;
    const to = Math.min(units, at + 1 + random.below(most));
    requests.push(request(disk, model, random, at * unit, to * unit));
    at = to + (random.below(2) === 0 ? random.below(spread) : 0);
  }
  if (random.below(5) === 0) requests.push(disk.backend.flush());
  const results = await Promise.allSettled(requests);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

async function compare(disk: Disk, model: Buffer): Promise<string | null> {
  if (disk.node.totalBytes !== model.length) return `length ${disk.node.totalBytes}, not ${model.length}`;
  const memory = allocateIoMemory(model.length);
  await disk.backend.preadv(0, model.length, vectorOf(memory), 0);
  if (memory.buf.equals(model)) return null;
  const at = memory.buf.findIndex((byte, index) => byte !== model[index]);
  return `byte ${at} is ${memory.buf[at]}, not ${model[at]}`;
}

function checkOriginal(settings: FormatModel, file: string): string | null {
  if (settings.check !== true) return null;
  try {
    peer('qemu-img', 'check', ...imageOf(settings, file));
    return null;
  } catch (error) {
    const { stdout, stderr } = error as { readonly stdout: string; readonly stderr: string };
    return stdout + stderr;
  }
}

/** Runs a guest from `seed`; a description of the first difference, or null. Files are made in `folder`. */
export async function formatModelRun(
  seed: number,
  settings: FormatModel,
  folder: string,
): Promise<string | null> {
  const random = createRandom(seed);
  const { format, backingBytes } = settings;
  const file = path.join(folder, `model-${seed}.${format}`);
  const raw = path.join(folder, `model-${seed}.raw`);
  const fail = (what: string): string => `${format}, seed ${seed}: ${what}`;
  let model = Buffer.alloc(settings.sizeBytes);
  let backing: string | null = null;
  if (backingBytes !== undefined) {
    const data = Buffer.alloc(backingBytes);
    for (let at = 0; at < data.length; at++) data[at] = 1 + ((at * 7 + (at >> 9)) % 255);
    writeFileSync(raw, data);
    backing = path.join(folder, `backing-${seed}.${format}`);
    peer('qemu-img', 'convert', '-f', 'raw', '-O', format, raw, backing);
    data.copy(model);
  }
  await createImage(settings, file, settings.sizeBytes, backing);
  let disk = await openDisk(file, settings);
  if (disk.node.totalBytes !== model.length) model = Buffer.concat([model], disk.node.totalBytes);
  let closed = false;
  try {
    for (let step = 0; step < settings.steps; step++) {
      const choice = random.below(20);
      if (choice === 0) {
        closed = true;
        await disk.close();
        const complaint = checkOriginal(settings, file);
        if (complaint !== null) return fail(`step ${step}: ${complaint}`);
        disk = await openDisk(file, settings);
        closed = false;
      } else if (choice === 1 && settings.resize === true) {
        const length = 512 * (1 + random.below((2 * settings.sizeBytes) / 512));
        const before = model;
        await disk.backend.truncate(length, true, 'off');
        model = Buffer.alloc(length);
        before.copy(model);
      } else {
        await batch(disk, model, random, settings);
      }
      if (step % 10 === 9) {
        const difference = await compare(disk, model);
        if (difference !== null) return fail(`step ${step}: ${difference}`);
      }
    }
    const difference = await compare(disk, model);
    if (difference !== null) return fail(difference);
  } catch (error) {
    return fail((error as Error).stack ?? String(error));
  } finally {
    if (!closed) await disk.close();
  }
  const complaint = checkOriginal(settings, file);
  if (complaint !== null) return fail(complaint);
  peer('qemu-img', 'convert', ...imageOf(settings, file), '-O', 'raw', raw);
  const same = readFileSync(raw).equals(model);
  for (const each of [file, raw, ...(backing === null ? [] : [backing])]) rmSync(each, { force: true });
  return same ? null : fail('the original reads another content');
}
