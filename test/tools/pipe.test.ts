/** `qblock-img convert` from pipes and into them. */

import { execFileSync, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { repositoryRoot } from '../peers/daemons.ts';

let dir = '';
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
const KiB = 1024;

/** Data, zeroes, data, an odd end. */
const disk = Buffer.concat([randomBytes(3000 * KiB), Buffer.alloc(5000 * KiB), randomBytes(100 * KiB + 77)]);
const padded = Buffer.concat([disk, Buffer.alloc(512 - (disk.length % 512))]);

beforeAll(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-'));
  writeFileSync(path.join(dir, 'disk.raw'), disk);
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const shell = (script: string): { status: number | null; stderr: string; stdout: Buffer } => {
  const { status, stderr, stdout } = spawnSync('bash', ['-c', `set -o pipefail; ${script}`], {
    cwd: dir,
    env: { ...process.env, IMG: img },
    maxBuffer: 64 * 1024 * KiB,
  });
  return { status, stderr: stderr.toString(), stdout };
};

function contentOf(file: string, format: string): Buffer {
  execFileSync(img, ['convert', '-f', format, '-O', 'raw', file, 'content'], { cwd: dir });
  return readFileSync(path.join(dir, 'content'));
}

test.each([
  ['qcow2', ''],
  ['qcow2', '-c'],
  ['qcow2', '-o cluster_size=4k,lazy_refcounts=on'],
  ['qcow2', '-S 0'],
  ['raw', ''],
  ['qed', ''],
  ['luks', '--object secret,id=s,data=abc -o key-secret=s,iter-time=10'],
])('into %s %s', (format, options) => {
  const { status, stderr } = shell(`cat disk.raw | $IMG convert -f raw -O ${format} ${options} - out.img`);
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  if (format === 'luks') return;
  expect(contentOf('out.img', format).equals(padded)).toBe(true);
  if (format === 'qcow2') expect(shell('$IMG check -f qcow2 out.img').status).toBe(0);
});

test('zeroes that come are not stored, and nothing is kept aside', () => {
  shell('cat disk.raw | $IMG convert -f raw -O qcow2 - out.img');
  const { stdout } = shell('$IMG info --output=json -f qcow2 out.img');
  const info = JSON.parse(stdout.toString()) as { 'virtual-size': number; 'actual-size': number };
  expect(info['virtual-size']).toBe(padded.length);
  expect(info['actual-size']).toBeLessThan(4500 * KiB);
});

test('what comes compressed is unpacked', () => {
  writeFileSync(path.join(dir, 'disk.gz'), gzipSync(disk));
  expect(shell('cat disk.gz | $IMG convert -f raw -O qcow2 - out.img').status).toBe(0);
  expect(contentOf('out.img', 'qcow2').equals(padded)).toBe(true);
  const cut = shell('head -c 1000000 disk.gz | $IMG convert -f raw -O qcow2 - out.img');
  expect(cut.status).toBe(1);
  expect(cut.stderr).toContain('What comes cannot be unpacked');
});

test('a file that is redirected has a length, so that every format takes it', () => {
  expect(shell('$IMG convert -f raw -O vmdk - out.vmdk < disk.raw')).toMatchObject({ status: 0, stderr: '' });
  expect(contentOf('out.vmdk', 'vmdk').subarray(0, disk.length).equals(disk)).toBe(true);
  const piped = shell('cat disk.raw | $IMG convert -f raw -O vmdk - out.vmdk');
  expect(piped.status).toBe(1);
  expect(piped.stderr).toContain('cannot grow');
});

test('out of an image, into a program, and through both', () => {
  shell('$IMG convert -f raw -O qcow2 disk.raw a.qcow2');
  expect(shell('$IMG convert -p -f qcow2 -O raw a.qcow2 - | cat').stdout.equals(padded)).toBe(true);
  const both = shell('$IMG convert -f qcow2 a.qcow2 - | gzip | $IMG convert -f raw -O qcow2 - b.qcow2');
  expect(both).toMatchObject({ status: 0, stderr: '' });
  expect(shell('$IMG compare a.qcow2 b.qcow2').status).toBe(0);
  expect(shell('mkfifo p; $IMG convert -f qcow2 a.qcow2 p & cat p > c.raw; wait').status).toBe(0);
  expect(readFileSync(path.join(dir, 'c.raw')).equals(padded)).toBe(true);
});

test('other formats go through pipes by a folder that the user names, and leave nothing there', () => {
  mkdirSync(path.join(dir, 'spool'));
  const found = shell(
    `$IMG convert -f raw -O qcow2 -c --spool spool disk.raw - | cat | $IMG convert --spool spool -f qcow2 -O vmdk - back.vmdk &&
     $IMG compare -f raw -F vmdk disk.raw back.vmdk && ls spool`,
  );
  expect([found.status, String(found.stdout), found.stderr]).toEqual([0, 'Images are identical.\n', '']);
  const named = shell(
    `for folder in nbd:x 'json:{}' file:x ./-; do mkdir -p "$folder"
       $IMG convert -f raw -O qcow2 --spool "$folder" disk.raw - | $IMG convert --spool "$folder" -f qcow2 -O vmdk - named.vmdk &&
         $IMG compare -f raw -F vmdk disk.raw named.vmdk && rmdir "$folder" || exit 1; done`,
  );
  expect([named.status, String(named.stdout), named.stderr]).toEqual([
    0,
    'Images are identical.\n'.repeat(4),
    '',
  ]);
  expect(
    shell('$IMG convert -f raw -O qcow2 --spool nowhere disk.raw - | cat; exit $PIPESTATUS'),
  ).toMatchObject({
    status: 1,
    stderr: expect.stringContaining("No file can be made in the folder 'nowhere' of --spool: No such file"),
  });
  // Whoever reads goes away: an error, and nothing stays.
  expect(
    shell('$IMG convert -f raw -O qcow2 -S 0 --spool spool disk.raw - | true; exit $PIPESTATUS').status,
  ).toBe(1);
  expect(readdirSync(path.join(dir, 'spool'))).toEqual([]);
  expect(
    shell('$IMG convert -f raw -O qcow2 -B base -F raw --spool spool disk.raw - | cat; exit $PIPESTATUS')
      .status,
  ).toBe(1);
});

test('by the folder what comes fits formats that are made for a length, and both ends may be pipes', () => {
  mkdirSync(path.join(dir, 'both'));
  writeFileSync(path.join(dir, 'disk.gz'), gzipSync(disk));
  for (const input of ['disk.raw', 'disk.gz']) {
    const found = shell(
      `cat ${input} | $IMG convert --spool both -f raw -O vmdk -o subformat=streamOptimized - made.vmdk && ls both`,
    );
    expect([found.status, String(found.stdout), found.stderr]).toEqual([0, '', '']);
    expect(contentOf('made.vmdk', 'vmdk').subarray(0, padded.length).equals(padded)).toBe(true);
  }
  const through = shell(
    `cat disk.raw | $IMG convert --spool both -f raw -O vmdk -o subformat=streamOptimized - - |
     $IMG convert --spool both -f vmdk -O raw - - | cmp -n ${padded.length} - <(cat disk.raw /dev/zero) && ls both`,
  );
  expect([through.status, String(through.stdout), through.stderr]).toEqual([0, '', '']);
  // Told to end while the one file lies there and the other is written, nothing stays.
  const told = shell(
    `mkfifo out; $IMG convert --spool both -f raw -O qcow2 - out < disk.raw & pid=$!
     until [ $(ls both | wc -l) = 2 ]; do sleep 0.02; done; kill -TERM $pid; wait $pid; echo $?; ls both; rm out`,
  );
  expect(String(told.stdout)).toBe('143\n');
});

test.each([
  ['opens the other end', '$IMG convert --spool both -f raw -O qcow2 - out < disk.raw & pid=$!'],
  [
    'reads on',
    `sleep 20 < out & reader=$!; ${'$IMG convert --spool both -f raw -O qcow2 -S 0 disk.raw - > out & pid=$!'}`,
  ],
])('told to end while nobody %s, it does', (_name, start) => {
  mkdirSync(path.join(dir, 'both'), { recursive: true });
  // A moment after all is ready to be sent.
  const told = shell(
    `mkfifo out; ${start}; until [ "$(du -k both | cut -f1)" -ge 2048 ]; do sleep 0.02; done; sleep 0.5
     kill -TERM $pid; wait $pid 2>/dev/null; echo $?; ls both; kill $reader 2>/dev/null; rm out`,
  );
  expect(String(told.stdout)).toBe('143\n');
});

test('of several sources one comes through a pipe, wherever it stands', () => {
  mkdirSync(path.join(dir, 'kept'));
  shell('$IMG create -q -f qcow2 one 1M && $IMG convert -f raw -O qcow2 disk.raw two');
  const whole = Buffer.concat([Buffer.alloc(1024 * KiB), padded]);
  for (const sources of ['one -', '- two']) {
    const given = sources === 'one -' ? 'two' : 'one';
    const found = shell(`cat ${given} | $IMG convert --spool kept -f qcow2 -O raw ${sources} both.raw`);
    expect(found).toMatchObject({ status: 0, stderr: '' });
    expect(readFileSync(path.join(dir, 'both.raw')).equals(whole)).toBe(true);
  }
  const twice = shell('cat one | $IMG convert --spool kept -f qcow2 -O raw - - both.raw');
  expect([twice.status, twice.stderr]).toEqual([1, expect.stringContaining('Only one source')]);
  expect(readdirSync(path.join(dir, 'kept'))).toEqual([]);
});

test('a reader that goes away is an error, and so is an empty input for a format that needs one', () => {
  const { status, stderr } = shell('$IMG convert -f qcow2 a.qcow2 - | head -c 1000 >/dev/null');
  expect(status).toBe(1);
  expect(stderr).toContain("error while writing to '-': Broken pipe");
  expect(shell('$IMG convert -f raw -O qcow2 - out.img </dev/null').status).toBe(0);
});

test.each([
  ['cat disk.raw | $IMG convert -O qcow2 - out.img', "say so with '-f raw'"],
  [
    'cat disk.raw | $IMG convert -f qcow2 -O raw - out.img',
    'Only raw images can come through a pipe, no qcow2',
  ],
  ['$IMG convert -f raw -O qcow2 disk.raw -', 'Only raw can be written into a pipe'],
  [
    'cat disk.raw | $IMG convert -f raw - -',
    'Only one end of a conversion can be a pipe, or both with --spool',
  ],
  ['cat disk.raw | $IMG convert -f raw - disk.raw out.img', 'A pipe goes from one image to one'],
])('%s is refused', (script, message) => {
  const { status, stderr } = shell(script);
  expect(status).toBe(1);
  expect(stderr).toContain(message);
});
