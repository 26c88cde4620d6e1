/** Power cuts: whatever part of the unflushed writes is lost, the image is sound and holds what was flushed. */

import { rmSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { limitMs } from '../../patience.ts';
import { requirePeer } from '../../peers/requires.ts';
import { scratch } from './open-layer.ts';
import { type PowerCutSettings, powerCutRun } from './power-cut.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** More runs from other seeds: POWER_CUT_RUNS=100, POWER_CUT_SEED=1. */
const RUNS = Number(process.env.POWER_CUT_RUNS ?? 2);
const FIRST_SEED = Number(process.env.POWER_CUT_SEED ?? 1);

const common = { batches: 30, cuts: 24, peerEvery: 12 };
const CASES: Readonly<Record<string, PowerCutSettings>> = {
  'small clusters': { ...common, create: 'cluster_size=512', sizeBytes: 1 << 20 },
  'clusters of 4 KiB': { ...common, create: 'cluster_size=4096', sizeBytes: 4 << 20 },
  'the usual clusters': { ...common, create: 'cluster_size=64k', sizeBytes: 8 << 20 },
  'wide refcounts': { ...common, create: 'cluster_size=512,refcount_bits=64', sizeBytes: 1 << 20 },
  'narrow refcounts': { ...common, create: 'cluster_size=512,refcount_bits=1', sizeBytes: 1 << 20 },
  'version 2': { ...common, create: 'compat=0.10,cluster_size=1k', sizeBytes: 1 << 20 },
  'lazy refcounts': { ...common, cuts: 12, create: 'cluster_size=1k,lazy_refcounts=on', sizeBytes: 1 << 20 },
  subclusters: { ...common, create: 'cluster_size=16k,extended_l2=on', sizeBytes: 4 << 20 },
  'tiny caches': {
    ...common,
    create: 'cluster_size=512',
    sizeBytes: 1 << 20,
    node: { 'l2-cache-size': 1024, 'refcount-cache-size': 1024, 'l2-cache-entry-size': 512 },
  },
  'discards passed on': {
    ...common,
    create: 'cluster_size=1k',
    sizeBytes: 1 << 20,
    node: { 'pass-discard-other': true },
  },
  snapshots: { ...common, cuts: 24, create: 'cluster_size=1k', sizeBytes: 1 << 20, snapshots: true },
  'snapshots in version 2': {
    ...common,
    create: 'cluster_size=512,compat=0.10',
    sizeBytes: 1 << 20,
    snapshots: true,
  },
  'snapshots, wide refcounts': {
    ...common,
    create: 'cluster_size=512,refcount_bits=64',
    sizeBytes: 1 << 19,
    snapshots: true,
  },
  'snapshots of subclusters, discards passed on': {
    ...common,
    cuts: 12,
    create: 'cluster_size=16k,extended_l2=on',
    sizeBytes: 2 << 20,
    node: { 'pass-discard-other': true, 'pass-discard-snapshot': true },
    snapshots: true,
  },
};

for (const [name, settings] of Object.entries(CASES)) {
  test(
    name,
    async (context) => {
      requirePeer(context, 'qemu-img');
      for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
        expect(await powerCutRun(seed, settings, folder)).toBeNull();
      }
    },
    limitMs(900_000 + 60_000 * RUNS),
  );
}
