/**
 * Random sequences of writes, rebase, commit, snapshot, resize and bitmap on a chain of three images, by the tools as
 * processes, beside a model of what each image shows. CHAIN_RUNS=N for more, CHAIN_SEED=N for others.
 */

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { createRandom, type Random } from '../../drivers/qcow2/random.ts';
import { repositoryRoot } from '../../peers/daemons.ts';

const RUNS = Number(process.env.CHAIN_RUNS ?? 1);
const FIRST_SEED = Number(process.env.CHAIN_SEED ?? 1);
const STEPS = 12;
const UNIT = 4096;

const root = mkdtempSync(path.join(tmpdir(), 'qb-chain-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** What a new image holds of its own: bytes by unit; undefined: what is below shows. */
interface Image {
  readonly name: string;
  below: string | null;
  units: number;
  own: (number | undefined)[];
  readonly snapshots: Map<string, { readonly own: (number | undefined)[]; readonly units: number }>;
  readonly bitmaps: Set<string>;
}

class Chain {
  readonly dir: string;
  readonly images = new Map<string, Image>();
  readonly log: string[] = [];

  constructor(dir: string) {
    this.dir = dir;
  }

  tool(name: 'img' | 'io', ...words: string[]): string {
    const line = `qblock-${name} ${words.map((word) => (word === '' ? "''" : word)).join(' ')}`;
    this.log.push(line);
    const program = path.join(repositoryRoot, 'daemon/bin', `qblock-${name}`);
    const { status, stdout, stderr } = spawnSync(program, words, { cwd: this.dir, encoding: 'utf8' });
    if (status !== 0) throw new Error(`${this.log.join('\n')}\n${stdout}${stderr}`);
    return stdout;
  }

  create(name: string, below: string | null, units: number, clusterBytes: number): void {
    const backing = below === null ? [] : ['-b', below, '-F', 'qcow2'];
    const options = ['-f', 'qcow2', '-o', `cluster_size=${clusterBytes}`];
    this.tool('img', 'create', '-q', ...options, ...backing, name, String(units * UNIT));
    this.images.set(name, {
      name,
      below,
      units,
      own: Array.from({ length: units }, () => undefined),
      snapshots: new Map(),
      bitmaps: new Set(),
    });
  }

  /** What an image shows, a byte for each unit. */
  shown(name: string): number[] {
    const { own, units, below } = this.images.get(name)!;
    const under = below === null ? [] : this.shown(below);
    return Array.from({ length: units }, (_, at) => own[at] ?? under[at] ?? 0);
  }

  /** Every image shows what the model says, and is sound. */
  verify(): void {
    for (const { name } of this.images.values()) {
      this.tool('img', 'convert', '-f', 'qcow2', '-O', 'raw', name, 'content');
      const bytes = readFileSync(path.join(this.dir, 'content'));
      const wanted = this.shown(name);
      expect(bytes.length, this.log.join('\n')).toBe(wanted.length * UNIT);
      for (const [at, value] of wanted.entries()) {
        const unit = bytes.subarray(at * UNIT, (at + 1) * UNIT);
        if (!unit.every((byte) => byte === value))
          throw new Error(`${this.log.join('\n')}\n${name}, unit ${at}: ${unit[0]} instead of ${value}`);
      }
      this.tool('img', 'check', '-q', name);
    }
  }
}

/** Steps that may fail to apply return false, and another is drawn. */
type Step = (chain: Chain, random: Random) => boolean;

const NAMES = ['base', 'mid', 'top'] as const;

function pickImage(chain: Chain, random: Random): Image {
  return chain.images.get(random.pick(NAMES))!;
}

/** Images that show this one. */
function above(chain: Chain, name: string): Image[] {
  return [...chain.images.values()].filter(({ below }) => below === name);
}

const STEPS_BY_NAME: Readonly<Record<string, Step>> = {
  write(chain, random) {
    // What lies under others stays: their content would change with it.
    const image = chain.images.get('top')!;
    const from = random.below(image.units);
    const count = Math.min(1 + random.below(6), image.units - from);
    const value = random.below(4) === 0 ? 0 : 1 + random.below(255);
    const pattern = value === 0 ? ['-z'] : ['-P', String(value)];
    const command = ['write', '-q', ...pattern, String(from * UNIT), String(count * UNIT)].join(' ');
    chain.tool('io', '-f', 'qcow2', '-c', command, 'top');
    image.own.fill(value, from, from + count);
    return true;
  },

  rebase(chain, random) {
    const image = chain.images.get('top')!;
    const target = random.pick([null, 'base', 'mid'] as const);
    const before = chain.shown('top');
    const backing = target === null ? ['-b', ''] : ['-b', target, '-F', 'qcow2'];
    chain.tool('img', 'rebase', ...(random.below(4) === 0 ? ['-c'] : []), ...backing, 'top');
    image.below = target;
    const under = target === null ? [] : chain.shown(target);
    image.own = before.map((value, at) => (value === (under[at] ?? 0) ? image.own[at] : value));
    return true;
  },

  commit(chain, random) {
    const image = chain.images.get('top')!;
    if (image.below === null) return false;
    const target = chain.images.get(image.below)!;
    // A longer target stays as long; a shorter one grows. Who else shows the target sees what is written to it.
    if (above(chain, target.name).length > 1 || image.snapshots.size > 0) return false;
    const keep = random.below(2) === 0;
    const before = chain.shown('top');
    chain.tool('img', 'commit', '-q', ...(keep ? ['-d'] : []), 'top');
    const units = Math.max(target.units, image.units);
    target.own = Array.from({ length: units }, (_, at) => image.own[at] ?? target.own[at]);
    if (units > target.units) {
      const under = target.below === null ? 0 : chain.images.get(target.below)!.units;
      // Beyond its old end the target showed zeroes, whatever is below.
      for (let at = target.units; at < units; at++) target.own[at] ??= at < under ? 0 : undefined;
    }
    target.units = units;
    if (!keep) image.own = image.own.map(() => undefined);
    expect(chain.shown('top'), chain.log.join('\n')).toEqual(before);
    return true;
  },

  snapshot(chain, random) {
    const image = pickImage(chain, random);
    const [first] = image.snapshots.keys();
    const action = first === undefined ? 0 : random.below(3);
    if (first === undefined || action === 0) {
      const name = `s${chain.log.length}`;
      chain.tool('img', 'snapshot', '-c', name, image.name);
      image.snapshots.set(name, { own: [...image.own], units: image.units });
    } else if (action === 1 && image.name === 'top' && image.bitmaps.size === 0) {
      const { own, units } = image.snapshots.get(first)!;
      chain.tool('img', 'snapshot', '-a', first, image.name);
      image.own = [...own];
      image.units = units;
    } else {
      chain.tool('img', 'snapshot', '-d', first, image.name);
      image.snapshots.delete(first);
    }
    return true;
  },

  resize(chain, random) {
    const image = chain.images.get('top')!;
    if (image.snapshots.size > 0 || image.bitmaps.size > 0) return false;
    const units = 16 + random.below(48);
    chain.tool('img', 'resize', '-q', '-f', 'qcow2', '--shrink', 'top', String(units * UNIT));
    const under = image.below === null ? 0 : chain.images.get(image.below)!.units;
    // What was not there reads as zeroes, also where the image below is longer.
    image.own = Array.from({ length: units }, (_, at) =>
      at < image.units ? image.own[at] : at < under ? 0 : undefined,
    );
    image.units = units;
    return true;
  },

  bitmap(chain, random) {
    const image = pickImage(chain, random);
    const [first] = image.bitmaps;
    if (first === undefined || random.below(2) === 0) {
      const name = `b${chain.log.length}`;
      chain.tool(
        'img',
        'bitmap',
        '--add',
        ...(first === undefined ? [] : ['--merge', first]),
        image.name,
        name,
      );
      image.bitmaps.add(name);
    } else {
      chain.tool(
        'img',
        'bitmap',
        random.pick(['--remove', '--clear', '--disable', '--enable']),
        image.name,
        first,
      );
      if (chain.log.at(-1)!.includes('--remove')) image.bitmaps.delete(first);
    }
    return true;
  },
};

test.each(Array.from({ length: RUNS }, (_, index) => FIRST_SEED + index))('seed %i', (seed) => {
  const random = createRandom(seed);
  const dir = mkdtempSync(path.join(root, 'run-'));
  const chain = new Chain(dir);
  const cluster = (): number => random.pick([512, 4096, 16384, 65536]);
  chain.create('base', null, 16 + random.below(40), cluster());
  chain.tool(
    'io',
    '-c',
    `write -q -P 1 0 ${8 * UNIT}`,
    '-c',
    `write -q -P 2 ${10 * UNIT} ${4 * UNIT}`,
    'base',
  );
  chain.images.get('base')!.own.fill(1, 0, 8).fill(2, 10, 14);
  chain.create('mid', 'base', 16 + random.below(40), cluster());
  chain.tool('io', '-c', `write -q -P 3 ${4 * UNIT} ${8 * UNIT}`, 'mid');
  chain.images.get('mid')!.own.fill(3, 4, 12);
  chain.create('top', 'mid', 16 + random.below(40), cluster());
  const names = Object.keys(STEPS_BY_NAME);
  for (let step = 0; step < STEPS; step++) {
    while (!STEPS_BY_NAME[random.pick(names)]!(chain, random));
    if (step % 4 === 3 || step === STEPS - 1) chain.verify();
  }
  const { bitmaps } = chain.images.get('top')!;
  const info = JSON.parse(chain.tool('img', 'info', '--output=json', 'top')) as {
    'format-specific': { data: { bitmaps?: { name: string }[] } };
  };
  expect(new Set((info['format-specific'].data.bitmaps ?? []).map(({ name }) => name))).toEqual(bitmaps);
});
