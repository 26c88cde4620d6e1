/**
 * Power cuts on images of other virtual machines: whatever part of the unflushed writes is lost, the image opens, holds
 * what was flushed, and its tables lead nowhere wrong. vhdx promises that by its log, qed by its need-check flag, the
 * others by the order in which data, tables and directories are written. The recorder is qcow2's.
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { afterAll, expect, test } from 'vitest';
import { limitMs } from '../../patience.ts';
import { requirePeer } from '../../peers/requires.ts';
import { checkImage, peer, scratch } from '../qcow2/open-layer.ts';
import { type ImageRules, type PowerCutSettings, powerCutRun } from '../qcow2/power-cut.ts';

const folder = scratch();
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** More runs from other seeds: POWER_CUT_RUNS=100, POWER_CUT_SEED=1. */
const RUNS = Number(process.env.POWER_CUT_RUNS ?? 1);
const FIRST_SEED = Number(process.env.POWER_CUT_SEED ?? 1);

const ALL_RIGHT = 0;
const LEAKS = 3;

/** Complaint of the original's check; leaks are allowed, as they lose nothing. */
function complaint(file: string, format: string): string | null {
  const { status, output } = checkImage(file, format);
  return status === ALL_RIGHT || status === LEAKS ? null : output;
}

/** The original's repair; throws when it fails. */
function repaired(file: string, format: string): Buffer {
  try {
    peer('qemu-img', 'check', '-q', '-r', 'all', '-f', format, file);
  } catch (error) {
    // 3: leaks were there and are gone.
    const { status, stderr } = error as { readonly status: number; readonly stderr: string };
    if (status !== LEAKS) throw new Error(`repair: ${stderr}`);
  }
  return readFileSync(file);
}

/** Rules of a format whose images need nothing done after a cut. `hasCheck`: the original's check knows it. */
function plainRules(format: string, hasCheck: boolean): ImageRules {
  return {
    format,
    compressedBytes: () => null,
    closed: () => null,
    settle(image, file, withPeer) {
      if (!withPeer || !hasCheck) return image;
      writeFileSync(file, image);
      return complaint(file, format) ?? image;
    },
  };
}

/** The count of blocks is written before a block is mapped: too many are counted after a cut, never too few. */
const vdiRules: ImageRules = {
  ...plainRules('vdi', true),
  settle(image, file, withPeer) {
    if (!withPeer) return image;
    writeFileSync(file, image);
    const said = complaint(file, 'vdi');
    const counts =
      said === null ? null : /^ERROR: allocated blocks mismatch, is (\d+), should be (\d+)$/m.exec(said);
    return said === null || (counts !== null && Number(counts[1]) < Number(counts[2])) ? image : said;
  },
};

/** The log: who cannot replay it may not touch the image; ours in memory, the original in the file. */
const vhdxRules: ImageRules = {
  ...plainRules('vhdx', true),
  closed: (image) => {
    const guids = [0x10000, 0x20000].map((at) => ({
      sequence: image.readBigUInt64LE(at + 8),
      log: image.subarray(at + 48, at + 64),
    }));
    const current = guids[0]!.sequence > guids[1]!.sequence ? guids[0]! : guids[1]!;
    return current.log.every((byte) => byte === 0) ? null : 'the log is not empty';
  },
  settle(image, file, withPeer) {
    if (!withPeer) return image;
    writeFileSync(file, image);
    const sound = repaired(file, 'vhdx');
    return complaint(file, 'vhdx') ?? sound;
  },
};

const QED_FEATURES_AT = 16;
const QED_NEED_CHECK = 2n;

/** Without the flag tables are right as they are. */
const qedRules: ImageRules = {
  ...plainRules('qed', true),
  closed: (image) =>
    (image.readBigUInt64LE(QED_FEATURES_AT) & QED_NEED_CHECK) === 0n ? null : 'the need-check flag is set',
  settle(image, file, withPeer) {
    const needsCheck = (image.readBigUInt64LE(QED_FEATURES_AT) & QED_NEED_CHECK) !== 0n;
    if (needsCheck && !withPeer) return image;
    writeFileSync(file, image);
    if (!needsCheck) return complaint(file, 'qed') ?? image;
    const sound = repaired(file, 'qed');
    return complaint(file, 'qed') ?? sound;
  },
};

const MIB = 1024 * 1024;
const common = { batches: 20, cuts: 12, peerEvery: 4 };
const CASES: Readonly<Record<string, PowerCutSettings>> = {
  'vhdx: the log': {
    ...common,
    rules: vhdxRules,
    create: 'block_size=1M,block_state_zero=off',
    sizeBytes: 12 * MIB,
  },
  'vhdx: the log, blocks of zeroes': {
    ...common,
    rules: vhdxRules,
    create: 'block_size=2M,log_size=2M',
    sizeBytes: 16 * MIB,
  },
  'qed: the need-check flag': { ...common, rules: qedRules, create: 'cluster_size=4k', sizeBytes: 4 * MIB },
  'qed: many tables': {
    ...common,
    rules: qedRules,
    // The original makes images with table_size=1, but cannot open them.
    create: 'cluster_size=4k,table_size=2',
    sizeBytes: 8 * MIB,
  },
  'vmdk: grain directories': { ...common, rules: plainRules('vmdk', false), create: '', sizeBytes: 40 * MIB },
  'vmdk: zeroed grains': {
    ...common,
    rules: plainRules('vmdk', false),
    create: 'zeroed_grain=on',
    sizeBytes: 8 * MIB,
  },
  vdi: { ...common, rules: vdiRules, create: '', sizeBytes: 12 * MIB },
  vpc: { ...common, rules: plainRules('vpc', false), create: 'force_size=on', sizeBytes: 12 * MIB },
  qcow: { ...common, rules: plainRules('qcow', false), create: '', sizeBytes: 4 * MIB },
  parallels: {
    ...common,
    rules: plainRules('parallels', false),
    create: 'cluster_size=64k',
    sizeBytes: 8 * MIB,
  },
};

for (const [name, settings] of Object.entries(CASES)) {
  test(
    name,
    async (context) => {
      requirePeer(context, 'qemu-img');
      for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++)
        expect(await powerCutRun(seed, settings, folder)).toBeNull();
    },
    limitMs(600_000 + 60_000 * RUNS),
  );
}
