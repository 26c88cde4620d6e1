/** The transcript runner itself: what it normalises, that it sees a difference, and that no transcript is left out. */

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { requirePeer } from './requires.ts';
import { cmd, Normaliser, runTranscript, type Transcript } from './transcript.ts';

test('what varies is replaced, the rest is kept and sorted', () => {
  const normaliser = new Normaliser('/tmp/qb-x');
  expect(
    normaliser.value({
      timestamp: { seconds: 5, microseconds: 6 },
      b: 'file /tmp/qb-x/a',
      a: ['#block123', '#block045', '#block123'],
      version: { qemu: { major: 7, minor: 2, micro: 0 }, package: 'x' },
      'actual-size': 4096,
      size: 4096,
    }),
  ).toEqual({
    a: ['#block<0>', '#block<1>', '#block<0>'],
    'actual-size': '<n>',
    b: 'file $DIR/a',
    size: 4096,
    timestamp: { microseconds: '<n>', seconds: '<n>' },
    version: '<version>',
  });
});

const base: Transcript = {
  name: 'base',
  files: { 'disk.img': 65536 },
  steps: [
    cmd('blockdev-add', {
      driver: 'raw',
      'node-name': 'r',
      file: { driver: 'file', filename: '$DIR/disk.img' },
    }),
    cmd('query-named-block-nodes'),
    { run: ['qemu-img', 'info', '--output=json', '$DIR/disk.img'] },
  ],
};

test('two runs of one daemon give one record', async (context) => {
  requirePeer(context, 'qemu-storage-daemon', 'qemu-img');
  const [first, second] = await Promise.all([
    runTranscript(base, 'qemu-storage-daemon'),
    runTranscript(base, 'qemu-storage-daemon'),
  ]);
  expect(first).toBe(second);
});

test('a difference shows (canary)', async (context) => {
  requirePeer(context, 'qemu-storage-daemon', 'qemu-img');
  const larger = { ...base, files: { 'disk.img': 131072 } };
  expect(await runTranscript(larger, 'qemu-storage-daemon')).not.toBe(
    await runTranscript(base, 'qemu-storage-daemon'),
  );
});

test('a step nobody answers, or a preparation that fails, is no agreement', async (context) => {
  requirePeer(context, 'qemu-img');
  const failing: Transcript = { name: 'x', steps: [{ run: ['qemu-img', 'create'], mustSucceed: true }] };
  await expect(runTranscript(failing, 'qblockd')).rejects.toThrow('qemu-img create');
  const silent: Transcript = { name: 'x', steps: [{ event: 'JOB_STATUS_CHANGE' }] };
  await expect(runTranscript(silent, 'qblockd')).rejects.toThrow('silence');
});

test('every file of transcripts is run by one test file', () => {
  const here = import.meta.dirname;
  const texts = readdirSync(here)
    .filter((name) => /^transcripts-.*\.test\.ts$/.test(name))
    .map((name) => readFileSync(path.join(here, name), 'utf8'));
  for (const file of readdirSync(path.join(here, 'transcripts'))) {
    const holdsTranscripts = /export const \w+Transcripts?\b/.test(
      readFileSync(path.join(here, 'transcripts', file), 'utf8'),
    );
    const users = texts.filter((text) => text.includes(`'./transcripts/${file}'`));
    expect([file, users.length]).toEqual([file, holdsTranscripts ? 1 : 0]);
  }
});
