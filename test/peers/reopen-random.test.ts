/**
 * Random reopenings of a graph in use, on both daemons: the same replies, and the same nodes, options and permissions
 * after each, be it done or rolled back. REOPEN_SEED repeats one run.
 */

import { describe, expect, test } from 'vitest';
import { createRandom } from '../drivers/qcow2/random.ts';
import { requirePeer } from './requires.ts';
import { cmd, runTranscript, type Step, type Transcript } from './transcript.ts';
import { qcow2Image } from './transcripts/reopen.ts';

const STEPS = 60;
const SEEDS = process.env.REOPEN_SEED === undefined ? [1, 2, 3] : [Number(process.env.REOPEN_SEED)];
const MIB = 2 ** 20;

type Options = Record<string, unknown>;
type Pick = <T>(...choices: readonly T[]) => T;

/** Settings of any node; often none. */
function settings(pick: Pick): Options {
  return {
    ...pick({}, {}, { 'read-only': true }, { 'read-only': false }),
    ...pick({}, {}, {}, { 'auto-read-only': true }),
    ...pick(
      {},
      {},
      { cache: { direct: true } },
      { cache: { 'no-flush': true } },
      { cache: { direct: false } },
    ),
    ...pick({}, {}, { discard: 'unmap' }, { discard: 'ignore' }),
    ...pick({}, {}, {}, { 'detect-zeroes': 'on' }, { 'detect-zeroes': 'unmap' }),
  };
}

function file(pick: Pick, name: string): Options {
  return {
    driver: 'file',
    filename: `$DIR/${pick(name, name, name, name, 'a.raw')}`,
    ...settings(pick),
    ...pick({}, {}, {}, {}, { locking: 'off' }),
  };
}

/** Nodes by name: how each may be described in a reopening. */
function describeNode(pick: Pick, node: string): Options {
  const named = { 'node-name': node, ...settings(pick) };
  const child = (name: string, own: string): unknown =>
    pick<unknown>(own, own, file(pick, name), 'fa', 'r', 'zz');
  switch (node) {
    case 'fa':
      return { ...file(pick, 'a.raw'), ...named };
    case 'fb':
      return { ...file(pick, 'b.raw'), ...named };
    case 'n':
      return { driver: 'null-co', ...named, size: pick(MIB, MIB, MIB, 512), 'read-zeroes': true };
    case 'r':
      return { driver: 'raw', ...named, file: pick<unknown>('fa', 'n', 'fb', file(pick, 'b.raw')) };
    case 'i':
      return { driver: 'raw', ...named, file: child('c.raw', 'ic') };
    default:
      return {
        driver: pick('qcow2', 'qcow2', 'qcow2', 'raw'),
        ...named,
        file: pick<unknown>('qf', 'qf', file(pick, 'q.q')),
        ...pick<Options>(
          {},
          { backing: null },
          { backing: 'n' },
          { backing: 'i' },
          { backing: 'r' },
          { backing: 'q' },
        ),
        ...pick<Options>({}, {}, { 'lazy-refcounts': true }, { 'l2-cache-size': MIB }, { 'cache-size': -1 }),
      };
  }
}

const NODES = ['fa', 'fb', 'n', 'r', 'i', 'q'];

function transcript(seed: number): Transcript {
  const random = createRandom(seed);
  const pick: Pick = (...choices) => random.pick(choices);
  const look = [cmd('query-named-block-nodes', { flat: true }), cmd('x-debug-query-block-graph')];
  const steps: Step[] = [
    cmd('blockdev-add', { driver: 'file', 'node-name': 'fa', filename: '$DIR/a.raw' }),
    cmd('blockdev-add', {
      driver: 'file',
      'node-name': 'fb',
      filename: '$DIR/b.raw',
      'auto-read-only': true,
    }),
    cmd('blockdev-add', { driver: 'null-co', 'node-name': 'n', size: MIB, 'read-zeroes': true }),
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'r', file: 'fa' }),
    cmd('blockdev-add', {
      driver: 'raw',
      'node-name': 'i',
      file: { driver: 'file', 'node-name': 'ic', filename: '$DIR/c.raw' },
    }),
    cmd('blockdev-add', {
      driver: 'qcow2',
      'node-name': 'q',
      file: { driver: 'file', 'node-name': 'qf', filename: '$DIR/q.q' },
    }),
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': pick('r', 'i', 'q'), writable: true }),
  ];
  for (let i = 0; i < STEPS; i++) {
    const count = pick(1, 1, 2, 3);
    const chosen = new Set(Array.from({ length: count }, () => pick(...NODES)));
    const options = [...chosen].map((node) => describeNode(pick, node));
    steps.push(cmd('blockdev-reopen', { options }), ...look);
  }
  return {
    name: `reopen-random-${seed}`,
    args: ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd.sock'],
    files: { 'a.raw': MIB, 'b.raw': MIB, 'c.raw': MIB, 'q.q': qcow2Image('1M') },
    steps,
  };
}

describe('random reopenings', () => {
  for (const seed of SEEDS) {
    test(`seed ${seed}`, async (context) => {
      requirePeer(context, 'qemu-storage-daemon', 'qemu-img');
      const script = transcript(seed);
      const theirs = await runTranscript(script, 'qemu-storage-daemon');
      const ours = await runTranscript(script, 'qblockd');
      expect(theirs.match(/"return":\{\}/g)?.length).toBeGreaterThan(STEPS / 4);
      // Some sequences make the original end; what it said before counts.
      const end = theirs.indexOf('<- (closed)');
      if (end < 0) expect(ours).toBe(theirs);
      else expect(ours.slice(0, end)).toBe(theirs.slice(0, end));
    });
  }
});
