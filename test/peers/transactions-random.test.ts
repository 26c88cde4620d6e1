/**
 * Random transactions against both daemons: equal replies, and after each one equal nodes, bitmaps and bits. What fails
 * leaves everything as it was. `SEED=n ROUNDS=n` repeats or widens a run.
 *
 * Not among the actions, because they end the original or leave it wrong: bitmap-merge without sources; enable, disable
 * and remove with completion-mode=grouped; enable and disable of bitmaps that are not there or are just being removed.
 */

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { type DaemonKind, type RunningDaemon, startDaemon } from './daemons.ts';
import { withoutNewer } from './newer-members.ts';
import type { QmpClient, QmpMessage } from './qmp-client.ts';
import { requirePeer } from './requires.ts';
import { Normaliser } from './transcript.ts';

const ROUNDS = Number(process.env.ROUNDS ?? 40);
const SEED = Number(process.env.SEED ?? 1);

/** A small generator of equal sequences (mulberry32). */
function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

interface Bitmap {
  readonly node: string;
  readonly name: string;
}

type Action = { readonly type: string; readonly data: Readonly<Record<string, unknown>> };

const DISKS = ['a', 'b', 'c'];
const SPARE = Array.from({ length: 24 }, (_, at) => `o${at}`);
const BITMAPS = ['x', 'y', 'z'];

/** Nodes come and go: names are chosen among what is likely to be there, and sometimes are not. */
class Generator {
  readonly #below: (below: number) => number;
  #files = 0;
  #spares = 0;

  constructor(seed: number) {
    this.#below = random(seed);
  }

  below(limit: number): number {
    return this.#below(limit);
  }

  #one<T>(items: readonly T[]): T {
    return items[this.#below(items.length)]!;
  }

  #node(): string {
    const overlays = SPARE.slice(Math.max(0, this.#spares - 4), this.#spares + 1);
    return this.#one([...DISKS, ...DISKS, ...overlays, ...overlays, 's0', `s${this.#files}`, 'none']);
  }

  #bitmap(type: string, known: readonly Bitmap[]): Action {
    const switched = type === 'enable' || type === 'disable';
    if (switched && known.length === 0) return { type: 'abort', data: {} };
    const data = switched ? this.#one(known) : { node: this.#node(), name: this.#one(BITMAPS) };
    if (type === 'add') {
      const rest = this.#below(3) === 0 ? { disabled: true } : {};
      const persistent = this.#below(4) === 0 ? { persistent: true } : {};
      return { type: 'block-dirty-bitmap-add', data: { ...data, ...rest, ...persistent } };
    }
    if (type !== 'merge') return { type: `block-dirty-bitmap-${type}`, data: { ...data } };
    const sources = Array.from({ length: 1 + this.#below(2) }, () =>
      this.#below(3) === 0 ? { node: this.#node(), name: this.#one(BITMAPS) } : this.#one(BITMAPS),
    );
    return {
      type: 'block-dirty-bitmap-merge',
      data: { node: data.node, target: data.name, bitmaps: sources },
    };
  }

  #action(known: readonly Bitmap[]): Action {
    const kind = this.#below(20);
    if (kind === 0) return { type: 'abort', data: {} };
    if (kind <= 3) {
      if (this.#below(3) > 0) this.#spares = Math.min(this.#spares + 1, SPARE.length - 1);
      return {
        type: 'blockdev-snapshot',
        data: { node: this.#node(), overlay: SPARE[this.#spares]! },
      };
    }
    if (kind <= 5) {
      const at = ++this.#files;
      const data = { 'node-name': this.#node(), 'snapshot-file': `$DIR/s${at}.qcow2` };
      return { type: 'blockdev-snapshot-sync', data: { ...data, 'snapshot-node-name': `s${at}` } };
    }
    if (kind <= 7) {
      return {
        type: 'blockdev-snapshot-internal-sync',
        data: { device: this.#node(), name: this.#one(['one', 'two', 'three', 'four']) },
      };
    }
    return this.#bitmap(
      this.#one(['add', 'add', 'add', 'remove', 'clear', 'enable', 'disable', 'merge']),
      known,
    );
  }

  /** `known`: the bitmaps there are. */
  transaction(known: readonly Bitmap[]): object {
    const actions: Action[] = [];
    const isNew = ({ type, data }: Action): boolean =>
      !/able$|remove$/.test(type) ||
      !actions.some((other) => /able$|remove$/.test(other.type) && other.data.name === data.name);
    for (let left = 1 + this.#below(4); left > 0; left--) {
      const action = this.#action(known);
      if (isNew(action)) actions.push(action);
    }
    if (this.#below(4) === 0) actions.push({ type: 'abort', data: {} });
    return { actions };
  }
}

/** What a daemon shows of its graph, with what differs between equal runs taken out. */
interface Side {
  readonly daemon: RunningDaemon;
  readonly client: QmpClient;
  readonly normaliser: Normaliser;
}

async function ask({ daemon, client, normaliser }: Side, execute: string, args?: object): Promise<unknown> {
  const text = JSON.stringify({ execute, ...(args && { arguments: args }) });
  client.send(`${text.replaceAll('$DIR', daemon.dir)}\n`);
  let message: QmpMessage | null;
  do message = await client.next();
  while (message !== null && 'event' in message);
  if (message === null) throw new Error(`the ${daemon.kind} has gone at ${execute}`);
  return normaliser.value(withoutNewer(comparable(message)));
}

/** Times of snapshots, and how long the files of images have become: where data goes is each daemon's own affair. */
function comparable(value: unknown): unknown {
  return JSON.parse(
    JSON.stringify(value, (key, member: unknown) => {
      if (/^(date|vm-clock)-n?sec$/.test(key)) return 0;
      const isFile = typeof member === 'object' && member !== null && 'format' in member;
      return isFile && member.format === 'file' ? { ...member, 'virtual-size': 0 } : member;
    }),
  );
}

interface ShownNode {
  readonly 'node-name': string;
  readonly 'dirty-bitmaps'?: readonly { readonly name: string; readonly inconsistent?: boolean }[];
}

interface State {
  readonly nodes: unknown;
  readonly bitmaps: readonly Bitmap[];
  readonly bits: readonly unknown[];
}

/** Nodes as they are shown, and the bits of every bitmap. */
async function state(side: Side): Promise<State> {
  const shown = (await ask(side, 'query-named-block-nodes', { flat: true })) as { return: ShownNode[] };
  const bitmaps = shown.return.flatMap((node) =>
    (node['dirty-bitmaps'] ?? []).map(({ name }) => ({ node: node['node-name'], name })),
  );
  const bits: unknown[] = [];
  for (const bitmap of bitmaps) bits.push(await ask(side, 'x-debug-block-dirty-bitmap-sha256', bitmap));
  return { nodes: shown, bitmaps, bits };
}

async function start(kind: DaemonKind): Promise<Side> {
  const daemon = await startDaemon(kind, {
    prepare: (dir) => {
      for (const name of [...DISKS, ...SPARE])
        spawnSync('qemu-img', ['create', '-q', '-f', 'qcow2', path.join(dir, name), '4M']);
    },
  });
  const client = await daemon.connect();
  await client.negotiate();
  const side = { daemon, client, normaliser: new Normaliser(daemon.dir) };
  for (const name of [...DISKS, ...SPARE]) {
    await ask(side, 'blockdev-add', {
      driver: 'qcow2',
      'node-name': name,
      file: { driver: 'file', filename: `$DIR/${name}` },
    });
  }
  await ask(side, 'nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd' } } });
  for (const name of DISKS)
    await ask(side, 'block-export-add', { type: 'nbd', id: name, 'node-name': name, name, writable: true });
  return side;
}

function write({ daemon }: Side, name: string, commands: readonly string[]): string {
  const argv = ['-f', 'raw', ...commands.flatMap((command) => ['-c', command])];
  const run = spawnSync('qemu-io', [...argv, `nbd+unix:///${name}?socket=${daemon.dir}/nbd`], {
    encoding: 'utf8',
  });
  return `${run.status} ${run.stdout.replace(/ ops; .*$/gm, '')} ${run.stderr}`;
}

describe('random transactions', () => {
  test('replies, nodes, bitmaps and bits are those of the original', async (context) => {
    requirePeer(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io');
    const generator = new Generator(SEED);
    const [theirs, ours] = await Promise.all([start('qemu-storage-daemon'), start('qblockd')]);
    try {
      let before = await state(ours);
      let succeeded = 0;
      for (let round = 0; round < ROUNDS; round++) {
        const args = generator.transaction(before.bitmaps);
        const where = `round ${round} of seed ${SEED}: ${JSON.stringify(args)}`;
        const [expected, reply] = await Promise.all([
          ask(theirs, 'transaction', args),
          ask(ours, 'transaction', args),
        ]);
        expect(reply, where).toEqual(expected);
        const [wanted, after] = await Promise.all([state(theirs), state(ours)]);
        expect(after, where).toEqual(wanted);
        const failed = typeof reply === 'object' && reply !== null && 'error' in reply;
        if (failed) expect(after, where).toEqual(before);
        else succeeded++;
        before = after;
        if (generator.below(4) > 0) continue;
        const name = DISKS[generator.below(DISKS.length)]!;
        const at = generator.below(63);
        const commands = [`read 0 4M`, `write -P ${1 + (round % 255)} ${at * 64}k 80k`];
        expect(write(ours, name, commands), where).toBe(write(theirs, name, commands));
        before = await state(ours);
        expect(before, where).toEqual(await state(theirs));
      }
      expect(succeeded).toBeGreaterThan(0);
    } finally {
      for (const side of [theirs, ours]) {
        side.client.close();
        await side.daemon.stop();
      }
    }
  });
});
