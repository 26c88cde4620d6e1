/** The lines that commands print on standard output when they make images: those of the original. */

import { execFileSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { type DaemonKind, startDaemon } from './daemons.ts';
import { requirePeer } from './requires.ts';

async function outputOf(kind: DaemonKind): Promise<string> {
  const daemon = await startDaemon(kind, {
    prepare: (dir) => {
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', 'a', '4M'], { cwd: dir });
      execFileSync('qemu-img', ['create', '-q', '-f', 'raw', 'r', '4M'], { cwd: dir });
    },
    args: [
      ['--blockdev', 'driver=qcow2,node-name=a,file.driver=file,file.filename=a'],
      ['--blockdev', 'driver=raw,node-name=r,file.driver=file,file.filename=r'],
    ].flat(),
  });
  const qmp = await daemon.connect();
  await qmp.negotiate();
  const run = (name: string, args: object): Promise<unknown> =>
    qmp.execute(name, args).catch((error: unknown) => error);
  await run('blockdev-snapshot-sync', { 'node-name': 'a', 'snapshot-file': 'over a' });
  await run('blockdev-snapshot-sync', { 'node-name': 'r', 'snapshot-file': 'over,r', format: 'qcow2' });
  await run('drive-backup', { 'job-id': 'b', device: 'r', target: 'b', sync: 'full', format: 'qcow2' });
  await run('drive-mirror', { 'job-id': 'm', device: 'a', target: 'm', sync: 'full', format: 'raw' });
  await run('drive-backup', { 'job-id': 'n', device: 'r', target: '/none/b', sync: 'full', format: 'raw' });
  await run('drive-backup', { 'job-id': 'n', device: 'r', target: 'x', sync: 'full', format: 'nonsense' });
  qmp.close();
  return (await daemon.stop()).stdout;
}

test('overlays, backups and mirrors', async (context) => {
  requirePeer(context, 'qemu-storage-daemon', 'qemu-img');
  const theirs = await outputOf('qemu-storage-daemon');
  expect(theirs.split('\n').length).toBeGreaterThan(3);
  expect(await outputOf('qblockd')).toBe(theirs);
});
