/**
 * blockdev-create of the formats of other programs beside the original: every option, what is refused and in which words,
 * and what the original's tools say of the images.
 */

import { execFileSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { type DaemonKind, startDaemon } from './daemons.ts';
import type { QmpClient } from './qmp-client.ts';
import { requirePeer } from './requires.ts';

const MiB = 1024 * 1024;
const TiB = MiB * MiB;

const MADE: readonly (readonly [string, object])[] = [
  ['vdi', {}],
  ['vdi', { preallocation: 'metadata' }],
  ['vdi', { size: 0 }],
  ['vhdx', {}],
  ['vhdx', { subformat: 'fixed' }],
  ['vhdx', { 'block-size': 2 * MiB, 'log-size': 2 * MiB, 'block-state-zero': false }],
  ['vpc', { 'force-size': true }],
  ['vpc', { 'force-size': true, subformat: 'fixed' }],
  ['vmdk', {}],
  ['vmdk', { 'adapter-type': 'lsilogic', hwversion: '11', toolsversion: '5' }],
  ['vmdk', { 'zeroed-grain': true }],
  ['qed', {}],
  ['qed', { 'cluster-size': 4096, 'table-size': 2 }],
  ['qed', { 'backing-file': 'b', 'backing-fmt': 'raw' }],
  ['qcow', {}],
  ['qcow', { 'backing-file': 'b' }],
  ['parallels', {}],
  ['parallels', { 'cluster-size': 65536 }],
];

const REFUSED: readonly (readonly [string, object])[] = [
  ['vdi', { preallocation: 'full' }],
  ['vdi', { size: 2 ** 50 }],
  ['vhdx', { 'block-size': 3 * MiB }],
  ['vhdx', { 'log-size': 12345 }],
  ['vhdx', { size: 70 * TiB }],
  ['vpc', {}],
  ['vpc', { size: 3 * TiB }],
  ['vmdk', { size: 1 }],
  ['vmdk', { 'backing-file': 'x' }],
  ['qed', { 'cluster-size': 5000 }],
  ['qed', { 'table-size': 3 }],
  ['qed', { size: 2 ** 62 }],
  ['parallels', { 'cluster-size': 1000 }],
  ['parallels', { size: 2 ** 62 }],
  ['luks', {}],
  ['vmdk', { subformat: 'bad' }],
  ['luks', { 'key-secret': 's', 'cipher-alg': 'des-ede' }],
];

interface JobInfo {
  readonly id: string;
  readonly status: string;
  readonly error?: string;
}

/** What became of the command: an error, the job's error, or what the original says of the image. */
async function create(client: QmpClient, file: string, driver: string, options: object): Promise<string> {
  writeFileSync(file, '');
  await client.execute('blockdev-add', { driver: 'file', 'node-name': 'f', filename: file });
  try {
    await client.execute('blockdev-create', {
      'job-id': 'j',
      options: { driver, file: 'f', size: 4 * MiB, ...options },
    });
  } catch (error) {
    await client.execute('blockdev-del', { 'node-name': 'f' });
    return `refused: ${(error as Error).message}`;
  }
  let job: JobInfo | undefined;
  while (job?.status !== 'concluded') {
    const jobs = (await client.execute('query-jobs')) as readonly JobInfo[];
    job = jobs.find(({ id }) => id === 'j');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await client.execute('job-dismiss', { id: 'j' });
  await client.execute('blockdev-del', { 'node-name': 'f' });
  if (job.error !== undefined) return `failed: ${job.error}`;
  const info = execFileSync('qemu-img', ['info', '-f', driver, file], { encoding: 'utf8' });
  rmSync(file);
  return info.replace(/disk size: .*|cid: \d+/g, '').replaceAll(file, 'FILE');
}

async function outcomes(kind: DaemonKind): Promise<readonly string[]> {
  const daemon = await startDaemon(kind);
  const client = await daemon.connect();
  await client.negotiate();
  const results: string[] = [];
  try {
    for (const [driver, options] of [...MADE, ...REFUSED]) {
      const result = await create(client, path.join(daemon.dir, 'image'), driver, options);
      results.push(`${driver} ${JSON.stringify(options)}: ${result.replaceAll(daemon.dir, 'DIR')}`);
    }
  } finally {
    client.close();
    await daemon.stop();
  }
  return results;
}

test(
  'images are made, and refused, as by the original',
  async (context) => {
    requirePeer(context, 'qemu-storage-daemon', 'qemu-img');
    const ours = await outcomes('qblockd');
    expect(ours.slice(0, MADE.length).filter((each) => !each.includes('virtual size'))).toEqual([]);
    expect(ours).toEqual(await outcomes('qemu-storage-daemon'));
  },
  limitMs(120_000),
);
