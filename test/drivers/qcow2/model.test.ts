/** Random guests compared with a model, over the features of the format, on both engines. */

import { rmSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { limitMs } from '../../patience.ts';
import { requirePeer } from '../../peers/requires.ts';
import { type ModelSettings, modelRun } from './model.ts';
import { scratch } from './open-layer.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** More runs from other seeds: MODEL_RUNS=100, MODEL_SEED=1. */
const RUNS = Number(process.env.MODEL_RUNS ?? 2);
const FIRST_SEED = Number(process.env.MODEL_SEED ?? 1);

const ring = { engine: 'io_uring', steps: 60 } as const;
const threads = { engine: 'threads', steps: 60 } as const;
const MIB = 1 << 20;
const CASES: Readonly<Record<string, ModelSettings>> = {
  'small clusters': { ...ring, create: 'cluster_size=512', sizeBytes: MIB, resize: true },
  'small clusters, threads': { ...threads, create: 'cluster_size=512', sizeBytes: MIB, resize: true },
  'clusters of 4 KiB with snapshots': {
    ...ring,
    create: 'cluster_size=4k',
    sizeBytes: 4 * MIB,
    snapshots: true,
    resize: true,
  },
  'the usual clusters': {
    ...ring,
    create: 'cluster_size=64k',
    sizeBytes: 8 * MIB,
    snapshots: true,
    resize: true,
    node: { 'overlap-check': 'all' },
  },
  'large clusters': { ...threads, steps: 30, create: 'cluster_size=2M', sizeBytes: 16 * MIB },
  'version 2': { ...ring, create: 'compat=0.10,cluster_size=1k', sizeBytes: MIB, snapshots: true },
  'refcounts of 1 bit': { ...ring, create: 'cluster_size=1k,refcount_bits=1', sizeBytes: MIB, resize: true },
  'refcounts of 2 bits with snapshots': {
    ...ring,
    create: 'cluster_size=1k,refcount_bits=8',
    sizeBytes: MIB,
    snapshots: true,
  },
  'refcounts of 64 bits': {
    ...threads,
    create: 'cluster_size=512,refcount_bits=64',
    sizeBytes: MIB,
    snapshots: true,
  },
  'lazy refcounts': { ...ring, create: 'cluster_size=1k,lazy_refcounts=on', sizeBytes: MIB, snapshots: true },
  subclusters: {
    ...ring,
    create: 'cluster_size=16k,extended_l2=on',
    sizeBytes: 4 * MIB,
    snapshots: true,
    resize: true,
  },
  'subclusters over a backing file': {
    ...ring,
    create: 'cluster_size=32k,extended_l2=on',
    sizeBytes: 4 * MIB,
    backingBytes: 3 * MIB + 1536,
  },
  'a backing file': {
    ...ring,
    create: 'cluster_size=4k',
    sizeBytes: 2 * MIB,
    backingBytes: MIB + 1536,
    snapshots: true,
  },
  'a longer backing file': {
    ...threads,
    create: 'cluster_size=4k',
    sizeBytes: MIB,
    backingBytes: 2 * MIB,
    resize: true,
  },
  'version 2 over a backing file': {
    ...ring,
    create: 'compat=0.10,cluster_size=4k',
    sizeBytes: MIB,
    backingBytes: MIB / 2,
  },
  zstd: { ...ring, create: 'cluster_size=4k,compression_type=zstd', sizeBytes: MIB, snapshots: true },
  'discards that keep their clusters': {
    ...ring,
    create: 'cluster_size=4k',
    sizeBytes: 4 * MIB,
    snapshots: true,
    node: { 'discard-no-unref': true },
  },
  'tiny caches': {
    ...ring,
    create: 'cluster_size=512',
    sizeBytes: 2 * MIB,
    snapshots: true,
    node: { 'l2-cache-size': 1024, 'refcount-cache-size': 1024, 'l2-cache-entry-size': 512 },
  },
};

for (const [name, settings] of Object.entries(CASES)) {
  test(
    name,
    async (context) => {
      requirePeer(context, 'qemu-img');
      for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
        expect(await modelRun(seed, settings, folder)).toBeNull();
      }
    },
    limitMs(900_000 + 60_000 * RUNS),
  );
}
