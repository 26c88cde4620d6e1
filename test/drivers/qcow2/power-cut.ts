/**
 * One power-cut run: a random guest on an image whose file is recorded, then many cuts of the recording, each image
 * of which must be sound and hold what was flushed. What sound means for a format is said by its ImageRules.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { createEngine } from '../../../src/aio/create-engine.ts';
import { allocateIoMemory, vectorOf } from '../../../src/aio/memory.ts';
import type { BlockBackend } from '../../../src/block/backend.ts';
import { Perm, Req } from '../../../src/block/contract/request.ts';
import type { BlockNode } from '../../../src/block/graph/node.ts';
import { co } from '../../../src/block/io/callbacks.ts';
import { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { drivers } from '../../../src/drivers/table.ts';
import {
  createRecording,
  cut,
  type Loss,
  type Recording,
  recorderDriver,
  SECTOR,
} from '../memory/recorder.ts';
import { inspect } from './inspect.ts';
import { checkImage, peer } from './open-layer.ts';
import { createRandom, type Random } from './random.ts';

/** What a format promises after a cut. */
export interface ImageRules {
  readonly format: string;
  /** What is wrong with an image that was closed properly; null: nothing. */
  closed(image: Buffer): string | null;
  /**
   * The image as whoever opens it first leaves it (repaired, where the format says that it has to be); or what is wrong.
   * `withPeer`: the original looks, too. `file`: a scratch file.
   */
  settle(image: Buffer, file: string, withPeer: boolean): Buffer | string;
  /** Unit in which compressed writes are tried; null: the format has none. */
  compressedBytes(node: BlockNode): number | null;
}

export interface PowerCutSettings {
  /** Default: qcow2. */
  readonly rules?: ImageRules;
  /** -o of qemu-img create. */
  readonly create: string;
  readonly sizeBytes: number;
  /** Options of the node besides driver and file. */
  readonly node?: Readonly<Record<string, unknown>>;
  readonly snapshots?: boolean;
  readonly batches: number;
  readonly cuts: number;
  /** Every so many cuts the original's check looks too. */
  readonly peerEvery: number;
}

/** A change of guest sectors [from, to) that began when the log had `begin` entries. */
interface Change {
  readonly begin: number;
  /** Log length when it was acknowledged; Infinity before. */
  end: number;
  readonly from: number;
  readonly to: number;
  readonly value: number;
  /** What the whole disk becomes, instead of `value`. */
  readonly content?: Uint8Array;
}

/** A completed flush: `content` is what it guarantees from log length `end` on. */
interface Guarantee {
  readonly begin: number;
  readonly end: number;
  readonly content: Uint8Array;
}

interface Guest {
  readonly rules: ImageRules;
  readonly sectors: number;
  readonly content: Uint8Array;
  readonly changes: Change[];
  readonly guarantees: Guarantee[];
  /** What snapshots hold, as far as nobody wrote while they were taken; null: unknown. */
  readonly snapshots: Map<string, Uint8Array | null>;
}

/** A place in the log of its own, so that what happens between two writes has an order too. */
function now({ log }: Recording): number {
  log.push({ kind: 'mark' });
  return log.length;
}

function openLayer(recording: Recording, random: Random): { layer: BlockLayer; close(): Promise<void> } {
  const { engine } = createEngine('threads');
  const layer = new BlockLayer({
    engine,
    events: { emit: () => undefined },
    drivers: { ...drivers, recorder: recorderDriver(recording, random) },
  });
  return {
    layer,
    close: async () => {
      await layer.closeAll();
      engine.close();
    },
  };
}

async function openNode(
  layer: BlockLayer,
  format: string,
  extra: Readonly<Record<string, unknown>>,
): Promise<{ node: BlockNode; backend: BlockBackend }> {
  const node = await openFromOptions(layer, {
    driver: format,
    'node-name': 'disk',
    file: { driver: 'recorder' },
    discard: 'unmap',
    ...extra,
  });
  const readOnly = extra['read-only'] === true;
  const perm = readOnly ? Perm.consistentRead : Perm.all;
  const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };
  return { node, backend: await layer.createBackend(node, { perm, shared: Perm.all }, owner) };
}

/** One random request over sectors nobody else of the batch touches. */
async function request(
  guest: Guest,
  recording: Recording,
  backend: BlockBackend,
  node: BlockNode,
  random: Random,
  from: number,
  to: number,
): Promise<void> {
  const kind = random.below(10);
  const value = kind < 7 ? 1 + random.below(255) : 0;
  const change: Change = { begin: now(recording), end: Number.POSITIVE_INFINITY, from, to, value };
  guest.changes.push(change);
  const offset = from * SECTOR;
  const bytes = (to - from) * SECTOR;
  if (kind < 7) {
    const memory = allocateIoMemory(bytes);
    memory.buf.fill(value);
    const vec = vectorOf(memory);
    const unit = guest.rules.compressedBytes(node);
    const aligned = unit !== null && offset % unit === 0 && bytes % unit === 0;
    let done = false;
    if (kind === 0 && aligned) {
      // Refused where the cluster has data already.
      done = await node.layer.graphLock.withRead((guard) =>
        co.pwritevCompressed(node, guard, offset, bytes, vec).then(
          () => true,
          () => false,
        ),
      );
    }
    if (!done) await backend.pwritev(offset, bytes, vec, 0);
  } else if (kind < 9) {
    await backend.pwriteZeroes(offset, bytes, kind === 7 ? Req.mayUnmap : 0);
  } else {
    // What a discard leaves behind is zeroes only for whole clusters; the guest makes sure of the rest.
    await backend.pdiscard(offset, bytes);
    await backend.pwriteZeroes(offset, bytes, Req.mayUnmap);
  }
  change.end = now(recording);
  guest.content.fill(value, from, to);
}

async function flush(guest: Guest, recording: Recording, backend: BlockBackend): Promise<void> {
  const content = Uint8Array.from(guest.content);
  const begin = now(recording);
  await backend.flush();
  guest.guarantees.push({ begin, end: now(recording), content });
}

async function batch(
  guest: Guest,
  recording: Recording,
  backend: BlockBackend,
  node: BlockNode,
  random: Random,
): Promise<void> {
  // Neighbouring ranges: their requests meet in the same clusters.
  const requests: Promise<void>[] = [];
  let at = random.below(guest.sectors);
  for (let left = 1 + random.below(6); left > 0 && at < guest.sectors; left--) {
    const to = Math.min(guest.sectors, at + 1 + random.below(random.pick([3, 20, 200])));
    requests.push(request(guest, recording, backend, node, random, at, to));
    at = to + (random.below(3) === 0 ? random.below(100) : 0);
  }
  if (random.below(4) === 0) requests.push(backend.flush());
  await Promise.all(requests);
}

async function takeSnapshot(node: BlockNode, name: string): Promise<void> {
  const times = { vmStateBytes: 0, dateSeconds: 1, dateNanoseconds: 0, vmClockNanoseconds: 0n };
  await node.layer.graphLock.withRead((guard) =>
    node.driver.snapshots!.create(node, guard, { name, ...times, icount: null }),
  );
}

/** Snapshot operations beside the guest's writes: they leave the active content alone. */
async function snapshot(node: BlockNode, guest: Guest, random: Random): Promise<void> {
  const { snapshots } = guest;
  if (snapshots.size === 0 || random.below(3) > 0) {
    const name = `s${random.below(1_000_000)}`;
    snapshots.set(name, null);
    await takeSnapshot(node, name);
  } else {
    const name = random.pick([...snapshots.keys()]);
    snapshots.delete(name);
    await node.layer.graphLock.withRead((guard) => node.driver.snapshots!.delete(node, guard, null, name));
  }
}

/** Takes a snapshot, or goes back to one, while the guest rests. */
async function quietSnapshot(
  node: BlockNode,
  guest: Guest,
  recording: Recording,
  random: Random,
): Promise<void> {
  const { snapshots, content, guarantees, changes } = guest;
  const known = [...snapshots].filter(([, held]) => held !== null);
  if (known.length === 0 || random.below(2) === 0) {
    const name = `q${random.below(1_000_000)}`;
    snapshots.set(name, Uint8Array.from(content));
    await takeSnapshot(node, name);
    return;
  }
  const [name, held] = random.pick(known);
  const change: Change = {
    begin: now(recording),
    end: Number.POSITIVE_INFINITY,
    from: 0,
    to: guest.sectors,
    value: 0,
    content: held!,
  };
  changes.push(change);
  await node.layer.graphLock.withRead((guard) => node.driver.snapshots!.apply(node, guard, name));
  change.end = now(recording);
  content.set(held!);
  guarantees.push({ begin: change.end, end: change.end, content: Uint8Array.from(content) });
}

/** What is wrong with the snapshots of an image after a cut; null: nothing that is known of. */
async function judgeSnapshots(node: BlockNode, backend: BlockBackend, guest: Guest): Promise<string | null> {
  const operations = node.driver.snapshots;
  for (const { name } of operations?.list(node) ?? []) {
    const held = guest.snapshots.get(name);
    if (held === undefined || held === null) continue;
    await node.layer.graphLock.withRead((guard) => operations!.load!(node, guard, null, name));
    const memory = allocateIoMemory(guest.sectors * SECTOR);
    await backend.preadv(0, memory.buf.length, vectorOf(memory), 0);
    for (let sector = 0; sector < guest.sectors; sector++) {
      const value = memory.buf[sector * SECTOR]!;
      if (value !== held[sector])
        return `sector ${sector} of snapshot ${name} is ${value}, not ${held[sector]}`;
    }
  }
  return null;
}

/** Sectors of one value. */
const PATTERNS = Array.from({ length: 256 }, (_, value) => Buffer.alloc(SECTOR, value));

/** Whether a sector may have a value after a cut before log entry `end`: null, or those that it may have. */
function allowed(guest: Guest, end: number): (sector: number, value: number) => Set<number> | null {
  let base: Guarantee = { begin: 0, end: 0, content: new Uint8Array(guest.sectors) };
  for (const guarantee of guest.guarantees) if (guarantee.end <= end) base = guarantee;
  const changes = guest.changes.filter((change) => change.begin < end && change.end > base.begin);
  return (sector, found) => {
    if (base.content[sector] === found) return null;
    const values = new Set([base.content[sector]!]);
    for (const { from, to, value, content } of changes)
      if (sector >= from && sector < to) values.add(content === undefined ? value : content[sector]!);
    return values.has(found) ? null : values;
  };
}

/** qcow2: refcounts cover what is referred to; they may be late only where the image says so. */
export function qcow2Rules(mayBeDirty: boolean): ImageRules {
  return {
    format: 'qcow2',
    compressedBytes: ({ state }) => (state as { readonly clusterBytes: number }).clusterBytes,
    closed(image) {
      const { corruptions, leaks, dirty } = inspect(image);
      if (corruptions.length === 0 && leaks === 0 && !dirty) return null;
      return `${leaks} leaks, dirty ${dirty}, ${corruptions.slice(0, 5).join('; ')}`;
    },
    settle(image, file, withPeer) {
      let sound = image;
      const first = inspect(image, true);
      if (first.dirty && !mayBeDirty) return 'it says that refcounts may be wrong';
      if (first.dirty) {
        // Refcounts and flags may be late: whoever opens the image puts them right first.
        writeFileSync(file, image);
        try {
          peer('qemu-img', 'check', '-q', '-r', 'all', '-f', 'qcow2', file);
        } catch (error) {
          const { status } = error as { status: number };
          if (status !== 0 && status !== 3) return `repair failed: ${(error as { stderr: string }).stderr}`;
        }
        sound = readFileSync(file);
      }
      const { corruptions } = first.dirty ? inspect(sound, true) : first;
      if (corruptions.length > 0) return corruptions.slice(0, 5).join('; ');
      if (withPeer) {
        writeFileSync(file, sound);
        const { status, output } = checkImage(file);
        if (status !== 0 && status !== 3) return output;
      }
      return sound;
    },
  };
}

/** What is wrong with an image after a cut; null when nothing is. */
async function judge(
  image: Buffer,
  guest: Guest,
  end: number,
  folder: string,
  withPeer: boolean,
): Promise<string | null> {
  const { rules } = guest;
  const sound = rules.settle(image, path.join(folder, `cut.${rules.format}`), withPeer);
  if (typeof sound === 'string') return sound;
  const { layer, close } = openLayer(createRecording(sound), createRandom(1));
  try {
    const { node, backend } = await openNode(layer, rules.format, { 'read-only': true });
    const memory = allocateIoMemory(guest.sectors * SECTOR);
    await backend.preadv(0, memory.buf.length, vectorOf(memory), 0);
    const spoilt = await judgeSnapshots(node, backend, guest);
    await backend.close();
    if (spoilt !== null) return spoilt;
    const valuesOf = allowed(guest, end);
    for (let sector = 0; sector < guest.sectors; sector++) {
      const at = sector * SECTOR;
      const value = memory.buf[at]!;
      const whole = PATTERNS[value]!.equals(memory.buf.subarray(at, at + SECTOR));
      const values = valuesOf(sector, value);
      if (!whole || values !== null) return `sector ${sector} is ${value}, allowed ${[...(values ?? [])]}`;
    }
    return null;
  } finally {
    await close();
  }
}

/** Runs a guest from `seed` and cuts the power; returns a description of the first failure, or null. */
export async function powerCutRun(
  seed: number,
  settings: PowerCutSettings,
  folder: string,
): Promise<string | null> {
  const random = createRandom(seed);
  const { rules = qcow2Rules(settings.create.includes('lazy')), create } = settings;
  const file = path.join(folder, `start.${rules.format}`);
  const options = create === '' ? [] : ['-o', create];
  peer('qemu-img', 'create', '-q', '-f', rules.format, ...options, file, String(settings.sizeBytes));
  const recording = createRecording(readFileSync(file));
  rmSync(file);
  const guest: Guest = {
    rules,
    sectors: settings.sizeBytes / SECTOR,
    content: new Uint8Array(settings.sizeBytes / SECTOR),
    changes: [],
    guarantees: [],
    snapshots: new Map(),
  };
  const { layer, close } = openLayer(recording, random);
  const { node, backend } = await openNode(layer, rules.format, settings.node ?? {});
  for (let i = 0; i < settings.batches; i++) {
    const work = [batch(guest, recording, backend, node, random)];
    if (settings.snapshots === true && random.below(4) === 0) work.push(snapshot(node, guest, random));
    await Promise.all(work);
    if (settings.snapshots === true && random.below(4) === 0)
      await quietSnapshot(node, guest, recording, random);
    if (random.below(3) === 0) await flush(guest, recording, backend);
  }
  await flush(guest, recording, backend);
  await backend.close();
  await close();
  const { log } = recording;
  const wrong = rules.closed(recording.data);
  if (wrong !== null) return `seed ${seed}: after closing: ${wrong}`;
  const losses: readonly Loss[] = ['nothing-lost', 'everything-lost', 'some-lost', 'torn'];
  for (let i = 0; i < settings.cuts; i++) {
    const at = i === 0 ? log.length : 1 + random.below(log.length);
    const loss = losses[i % losses.length]!;
    const failure = await judge(
      cut(recording, at, loss, random),
      guest,
      at,
      folder,
      i % settings.peerEvery === 0,
    );
    if (failure !== null) return `seed ${seed}, cut before ${at} of ${log.length}, ${loss}: ${failure}`;
  }
  return null;
}
