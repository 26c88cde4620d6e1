/**
 * Incremental backup of a disk: a full copy and a bitmap in one transaction, then only what was written since.
 *
 * Usage: node incremental-backup.ts ADDRESS NODE DIRECTORY      NODE is a qcow2 node whose guest goes on writing
 */

import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { type Client, connect } from '../node.ts';

const BITMAP = 'backup';

/** Makes an image in the folder and opens it as node `name`. */
async function openTarget(client: Client, name: string, file: string, backing: string | null): Promise<void> {
  await client.blockdevAdd({ driver: 'file', 'node-name': `${name}-file`, filename: file });
  await client.blockdevAdd({ driver: 'qcow2', 'node-name': name, file: `${name}-file`, backing });
}

/** The first backup: everything, and from that moment on the bitmap records what is written. */
export async function fullBackup(client: Client, node: string, target: string): Promise<void> {
  const jobId = `${target}-job`;
  await client.transaction({
    actions: [
      { type: 'block-dirty-bitmap-add', data: { node, name: BITMAP, persistent: true } },
      {
        type: 'blockdev-backup',
        data: { 'job-id': jobId, device: node, target, sync: 'full', 'auto-dismiss': false },
      },
    ],
  });
  await client.job(jobId).finished();
}

/** The next backup: what the bitmap has recorded. It starts anew when the job succeeds, and keeps all when it fails. */
export async function incrementalBackup(client: Client, node: string, target: string): Promise<void> {
  const jobId = `${target}-job`;
  await client.blockdevBackup({
    'job-id': jobId,
    device: node,
    target,
    sync: 'incremental',
    bitmap: BITMAP,
    'auto-dismiss': false,
  });
  await client.job(jobId).finished();
}

async function main([address = '', node = '', directory = '']: readonly string[]): Promise<void> {
  await using client = await connect(address);
  const nodes = await client.queryNamedBlockNodes({ flat: true });
  const size = nodes.find((info) => info['node-name'] === node)?.image['virtual-size'];
  if (size === undefined) throw new Error(`There is no node '${node}'`);
  const image = (name: string, ...more: readonly string[]): string => {
    const file = path.join(directory, name);
    execFileSync('qblock-img', ['create', '-q', '-f', 'qcow2', ...more, file, String(size)]);
    return file;
  };
  const bitmaps = nodes.find((info) => info['node-name'] === node)?.['dirty-bitmaps'] ?? [];
  if (!bitmaps.some(({ name }) => name === BITMAP)) {
    await openTarget(client, 'full', image('full.qcow2'), null);
    await fullBackup(client, node, 'full');
    await client.blockdevDel({ 'node-name': 'full' });
    await client.blockdevDel({ 'node-name': 'full-file' });
  } else {
    const stamp = new Date().toISOString().replace(/\W/g, '');
    const file = image(`${stamp}.qcow2`, '-b', 'full.qcow2', '-F', 'qcow2');
    await openTarget(client, 'increment', file, null);
    await incrementalBackup(client, node, 'increment');
    await client.blockdevDel({ 'node-name': 'increment' });
    await client.blockdevDel({ 'node-name': 'increment-file' });
  }
}

if (process.argv[1]?.includes('incremental-backup') === true) await main(process.argv.slice(2));
