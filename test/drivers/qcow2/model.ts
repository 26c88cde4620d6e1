/**
 * One model run: a random guest on an image in a real file, with several requests at once, compared byte for byte
 * with a Buffer. After closing, the original's check must find nothing, and its tools must read the same content.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { createEngine } from '../../../src/aio/create-engine.ts';
import type { EngineKind } from '../../../src/aio/engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import { Perm, Req } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { co } from '../../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import { checkImage, peer } from './open-layer.ts';
import { createRandom, type Random } from './random.ts';

export interface ModelSettings {
  readonly create: string;
  readonly sizeBytes: number;
  readonly engine: EngineKind;
  readonly node?: Readonly<Record<string, unknown>>;
  /** Length of a raw backing file full of data; 0 or absent: none. */
  readonly backingBytes?: number;
  readonly snapshots?: boolean;
  readonly resize?: boolean;
  readonly steps: number;
}

interface Disk {
  readonly layer: BlockLayer;
  readonly node: BlockNode;
  readonly backend: BlockBackend;
  close(): Promise<void>;
}

async function openDisk(file: string, { engine: kind, node: extra = {} }: ModelSettings): Promise<Disk> {
  const { engine } = createEngine(kind);
  const layer = new BlockLayer({ engine, events: { emit: () => undefined }, drivers });
  const node = await openFromOptions(layer, {
    driver: 'qcow2',
    'node-name': 'disk',
    file: { driver: 'file', filename: file },
    discard: 'unmap',
    ...extra,
  });
  const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };
  const backend = await layer.createBackend(node, { perm: Perm.all, shared: Perm.all }, owner);
  return {
    layer,
    node,
    backend,
    close: async () => {
      await backend.close();
      await layer.closeAll();
      engine.close();
    },
  };
}

/** One random request on [from, to), and the same on the model when it has succeeded. */
async function request(disk: Disk, model: Buffer, random: Random, from: number, to: number): Promise<void> {
  const { backend, node, layer } = disk;
  const bytes = to - from;
  const { clusterBytes } = node.state as { readonly clusterBytes: number };
  const kind = random.below(12);
  if (kind >= 10) {
    await backend.pwriteZeroes(from, bytes, kind === 10 ? Req.mayUnmap : 0);
    model.fill(0, from, to);
  } else if (kind === 9) {
    await backend.pdiscard(from, bytes);
    await backend.pwriteZeroes(from, bytes, Req.mayUnmap);
    model.fill(0, from, to);
  } else if (kind === 8) {
    const memory = allocateIoMemory(bytes);
    await backend.preadv(from, bytes, vectorOf(memory), 0);
    if (!memory.buf.equals(model.subarray(from, to))) throw new Error(`read ${from}+${bytes} differs`);
  } else {
    const memory = allocateIoMemory(bytes);
    memory.buf.fill(1 + random.below(255));
    const vec = vectorOf(memory);
    let done = false;
    if (kind === 0 && from % clusterBytes === 0 && bytes % clusterBytes === 0) {
      // Refused where the cluster has data already.
      done = await layer.graphLock.withRead((guard) =>
        co.pwritevCompressed(node, guard, from, bytes, vec).then(
          () => true,
          () => false,
        ),
      );
    }
    if (!done) await backend.pwritev(from, bytes, vec, kind === 1 ? Req.fua : 0);
    memory.buf.copy(model, from);
  }
}

async function batch(disk: Disk, model: Buffer, random: Random): Promise<void> {
  const { clusterBytes } = disk.node.state as { readonly clusterBytes: number };
  const requests: Promise<void>[] = [];
  // All aligned to a unit: bytes, sectors, or clusters.
  const unit = random.pick([1, 512, 512, clusterBytes]);
  const units = Math.floor(model.length / unit);
  const spread = Math.max(1, Math.floor((4 * clusterBytes) / unit));
  let at = random.below(units);
  for (let left = 1 + random.below(8); left > 0 && at < units; left--) {
    const to = Math.min(units, at + 1 + random.below(random.below(4) === 0 ? 4 * spread : spread));
    requests.push(request(disk, model, random, at * unit, to * unit));
    at = to + (random.below(2) === 0 ? random.below(spread) : 0);
  }
  if (random.below(5) === 0) requests.push(disk.backend.flush());
  const results = await Promise.allSettled(requests);
  for (const result of results) if (result.status === 'rejected') throw result.reason;
}

interface Snapshots {
  readonly saved: Map<string, Buffer>;
}

/** A snapshot operation; returns the active content afterwards. */
async function snapshot(disk: Disk, model: Buffer, random: Random, { saved }: Snapshots): Promise<Buffer> {
  const operations = disk.node.driver.snapshots!;
  const names = [...saved.keys()];
  return disk.layer.graphLock.withRead(async (guard) => {
    const choice = names.length === 0 ? 0 : random.below(3);
    if (choice === 0) {
      const name = `s${random.below(1_000_000)}`;
      const times = { vmStateBytes: 0, dateSeconds: 1, dateNanoseconds: 0, vmClockNanoseconds: 0n };
      await operations.create(disk.node, guard, { name, ...times, icount: null });
      saved.set(name, Buffer.from(model));
      return model;
    }
    const name = random.pick(names);
    if (choice === 1) {
      await operations.delete(disk.node, guard, null, name);
      saved.delete(name);
      return model;
    }
    await operations.apply(disk.node, guard, name);
    return Buffer.from(saved.get(name)!);
  });
}

async function compare(disk: Disk, model: Buffer): Promise<string | null> {
  if (disk.node.totalBytes !== model.length) return `length ${disk.node.totalBytes}, not ${model.length}`;
  const memory = allocateIoMemory(model.length);
  await disk.backend.preadv(0, model.length, vectorOf(memory), 0);
  const at = memory.buf.findIndex((byte, index) => byte !== model[index]);
  return at < 0 ? null : `byte ${at} is ${memory.buf[at]}, not ${model[at]}`;
}

/** Runs a guest from `seed`; returns a description of the first difference, or null. */
export async function modelRun(
  seed: number,
  settings: ModelSettings,
  folder: string,
): Promise<string | null> {
  const random = createRandom(seed);
  const file = path.join(folder, 'model.qcow2');
  const backing = path.join(folder, 'backing.raw');
  const raw = path.join(folder, 'model.raw');
  const { backingBytes = 0 } = settings;
  let model = Buffer.alloc(settings.sizeBytes);
  const arguments_ = ['create', '-q', '-f', 'qcow2', '-o', settings.create];
  if (backingBytes > 0) {
    const data = Buffer.alloc(backingBytes);
    for (let at = 0; at < data.length; at++) data[at] = 1 + ((at * 7 + (at >> 9)) % 255);
    writeFileSync(backing, data);
    data.copy(model);
    arguments_.push('-b', backing, '-F', 'raw');
  }
  peer('qemu-img', ...arguments_, file, String(settings.sizeBytes));
  let disk = await openDisk(file, settings);
  const snapshots: Snapshots = { saved: new Map() };
  const fail = (what: string): string => `seed ${seed}: ${what}`;
  let closed = false;
  try {
    for (let step = 0; step < settings.steps; step++) {
      const choice = random.below(20);
      if (choice === 0) {
        await disk.close();
        const { status, output } = checkImage(file);
        if (status !== 0) {
          closed = true;
          return fail(`step ${step}: ${output}`);
        }
        disk = await openDisk(file, settings);
      } else if (choice === 1 && settings.resize === true) {
        const length = 512 * (1 + random.below((2 * settings.sizeBytes) / 512));
        const before = model;
        await disk.backend
          .truncate(length, true, random.pick(['off', 'metadata', 'falloc', 'full'] as const))
          .catch(
            // Preallocation is for growing only.
            () => disk.backend.truncate(length, true, 'off'),
          );
        model = Buffer.alloc(length);
        before.copy(model);
      } else if (choice <= 3 && settings.snapshots === true) {
        model = Buffer.from(await snapshot(disk, model, random, snapshots));
      } else {
        await batch(disk, model, random);
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
  const { status, output } = checkImage(file);
  if (status !== 0) return fail(output);
  peer('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', file, raw);
  const read = readFileSync(raw);
  for (const each of [file, raw, backing]) rmSync(each, { force: true });
  return read.equals(model) ? null : fail('the original reads another content');
}
