/** What `resize` says of lengths that cannot be, by format, beside the original. */

import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';
import { repositoryRoot } from '../daemons.ts';
import { requirePeer } from '../requires.ts';

const LENGTHS = ['1', '513', '-1', '9223372036854775807', '9223372036854775808'];

test.for(['qcow2', 'qed', 'vdi', 'parallels'])('%s', (format, context) => {
  requirePeer(context, 'qemu-img');
  const dir = mkdtempSync(path.join(tmpdir(), 'qb-'));
  try {
    execFileSync('qemu-img', ['create', '-q', '-f', format, 'image', '1M'], { cwd: dir });
    const answers = (program: string): string[] =>
      LENGTHS.map((length) => {
        const words = ['resize', '--shrink', '-f', format, 'image', '--', length];
        const { status, stderr } = spawnSync(program, words, { cwd: dir, encoding: 'utf8' });
        return `${length}: ${status === 0 ? '' : stderr.replace('qblock-img', 'qemu-img')}`;
      });
    expect(answers(path.join(repositoryRoot, 'daemon/bin/qblock-img'))).toEqual(answers('qemu-img'));
  } finally {
    rmSync(dir, { recursive: true });
  }
});
