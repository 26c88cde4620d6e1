/** qblock-io beside qemu-io: the same commands on equal images give the same output, status and content. */

import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { requirePeer } from './requires.ts';

const root = path.resolve(import.meta.dirname, '../..');
const qblockIo = path.join(root, 'daemon/bin/qblock-io');
const folder = mkdtempSync(path.join(tmpdir(), 'qb-io-'));
const image = path.join(folder, 'image.qcow2');
const raw = path.join(folder, 'image.raw');
const overlay = path.join(folder, 'overlay.qcow2');
const pattern = path.join(folder, 'pattern');

beforeAll(() => {
  writeFileSync(pattern, 'twelve bytes');
  spawnSync('qemu-img', ['create', '-q', '-f', 'qcow2', image, '10M']);
  spawnSync('qemu-io', ['-c', 'write -q -P 7 1M 300k', '-c', 'write -q -z 2M 256k', image]);
  spawnSync('qemu-img', ['create', '-q', '-f', 'raw', raw, '1M']);
  spawnSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', image, '-F', 'qcow2', overlay, '11M']);
  spawnSync('qemu-io', ['-c', 'write -q -P 9 512k 1M', overlay]);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Times and rates vary, and so do the tools' and files' names. */
function normalised(text: string, file: string): string {
  return text
    .replaceAll(file, 'IMAGE')
    .replaceAll(path.basename(file), 'IMAGE')
    .replaceAll('qblock-io', 'qemu-io')
    .replace(/#block\d+/g, '#block')
    .replace(/ops; .*/g, 'ops; TIME')
    .replace(/^(\d+,\d+),[\d.,:]+$/gm, '$1,FIGURES');
}

function run(tool: string, file: string, args: readonly string[], input?: string): Outcome {
  const options = { encoding: 'utf8', input: input ?? '', cwd: folder, timeout: limitMs(60_000) } as const;
  const { status, stdout, stderr } = spawnSync(tool, [...args], options);
  return { status, stdout: normalised(stdout, file), stderr: normalised(stderr, file) };
}

/** Runs both tools on copies of `source` and compares everything. */
function compare(
  source: string,
  before: readonly string[],
  commands: readonly string[],
  input?: string,
): void {
  const [theirs, ours] = ['theirs', 'ours'].map((name) => path.join(folder, name)) as [string, string];
  const outcomes = (
    [
      ['qemu-io', theirs],
      [qblockIo, ours],
    ] as const
  ).map(([tool, file]) => {
    copyFileSync(source, file);
    // Commands that open images themselves name it IMAGE.
    const own = commands.some((command) => command.includes('IMAGE'));
    const words = commands.flatMap((command) => ['-c', command.replaceAll('IMAGE', path.basename(file))]);
    return run(tool, file, [...before, ...words, ...(own ? [] : [file])], input);
  });
  expect(outcomes[1]).toEqual(outcomes[0]);
  const format = source === raw ? 'raw' : 'qcow2';
  const same = spawnSync('qemu-img', ['compare', '-f', format, '-F', format, theirs, ours], {
    encoding: 'utf8',
  });
  expect(same.stdout).toBe('Images are identical.\n');
  if (format === 'qcow2') expect(spawnSync('qemu-img', ['check', '-q', ours]).status).toBe(0);
}

const GROUPS: Readonly<Record<string, readonly string[]>> = {
  read: [
    'read 0 512',
    'read -P 7 1M 300k',
    'read -P 8 1M 300k',
    'read -v 1048570 20',
    'read -q 0 4k',
    'read -C 0 4k',
    'r 1k 1.5k',
  ],
  'read in part': [
    'read -P 7 -s 6 -l 10 1048570 512',
    'read -P 0 -s 600 0 512',
    'read -P 0 -l 600 0 512',
    'read -s 3 0 512',
    'read -l 3 0 512',
  ],
  'bad reads': [
    'read',
    'read 0',
    'read 0 1 2',
    'read -x 0 1',
    'read 0 -1',
    'read 20M 512',
    'read 0 3G',
    'read 0 1x',
    'read a 1',
    'read -P 256 0 512',
    'read -P x 0 512',
  ],
  write: [
    'write 0 64k',
    'write -P 0x11 64k 64k',
    'write -q 1 3',
    'write -C 0 4k',
    'w -f 0 512',
    `write -s ${pattern} 3M 100`,
    'read -v 3M 30',
    'map',
  ],
  'write zeroes and compressed': [
    'write -z 0 64k',
    'write -z -u 1M 64k',
    'write -z -n 2M 64k',
    'write -z 5 7',
    'write -c 4M 64k',
    'read -P 0xcd 4M 64k',
    'write -c 0 1',
    'map',
  ],
  'bad writes': [
    'write 20M 512',
    'write -n 0 512',
    'write -u 0 512',
    'write -b -z 0 512',
    'write -f -c 0 512',
    'write -P 3 -z 0 512',
    'write -s nofile 0 512',
    'write -P -1 0 512',
    'write 0',
  ],
  vectors: [
    'readv -P 7 1M 512 1k 4k',
    'readv -P 1 0 512',
    'readv -v 1048570 3 7',
    'writev -P 3 0 512 512',
    'writev 0 513',
    'writev -f 0 1k',
    'writev -q 5M 1 2 3',
    'readv 0',
    'writev 20M 1',
  ],
  asynchronous: [
    'aio_write -P 4 0 4k',
    'aio_flush',
    'aio_read -P 4 0 4k',
    'aio_flush',
    'aio_write -z 0 64k',
    'aio_flush',
    'aio_read -P 9 0 512',
    'aio_flush',
    'aio_read 11M 512',
    'aio_flush',
    'aio_write -u 0 512',
    'aio_write -z 0 1 2',
    'aio_read -i 0 1',
  ],
  discard: [
    'discard 1M 64k',
    'discard -q 0 64k',
    'discard 0 1',
    'd 2M 1M',
    'discard 0',
    'discard 11M 512',
    'discard 0 3G',
    'map',
  ],
  size: [
    'length',
    'truncate 5M',
    'length',
    'truncate 1',
    'truncate x',
    'truncate',
    'truncate -m foo 1M',
    'truncate -m full 1M',
    't 12M',
    'l',
  ],
  allocation: [
    'map',
    'alloc 0',
    'alloc 1M 1M',
    'alloc 0 20M',
    'alloc 30M',
    'alloc 1M 1',
    'a 2M 64k',
    'alloc x',
    'map 3',
  ],
  'around images': ['open x', 'close', 'close', 'length', 'read 0 1', 'open nofile', 'bogus', '', 'flush 3'],
  others: [
    'info',
    'sleep 1',
    'sleep x',
    'sleep',
    'flush',
    'f',
    'help',
    'help nope',
    'sigraise',
    'break a b',
    'resume x',
    'remove_break x',
    'info 3',
  ],
  reopen: [
    'reopen -r',
    'write 0 512',
    'reopen -w',
    'write 0 512',
    'reopen -r -w',
    'reopen x',
    'reopen -c foo',
    'reopen -c none',
    'read -q 0 512',
  ],
  'nothing at all': [
    'write 5M 0',
    'write -z 5M 0',
    'writev 5M 0',
    'aio_write 6M 0',
    'aio_flush',
    'read 5M 0',
    'map',
  ],
  'zeroes in part of a cluster': ['write -z 3801088 1', 'write -z -u 5M 4k', 'write -z 65537 100k', 'map'],
  'compressed on top': [
    'write 0 64k',
    'write -c 0 64k',
    'write -z 0 64k',
    'write -c 0 64k',
    'write -z -u 0 64k',
    'write -c 0 64k',
    'write -c 0 64k',
    'discard 0 64k',
    'write -c 0 64k',
    'map',
  ],
  'state of a virtual machine': [
    'read -b 0 4k',
    'write -b 0 4k',
    'write -b -P 3 512M 64k',
    'read -b -P 3 512M 64k',
    'read -b -P 0xcd 0 4k',
    'read -b -v 4096 512',
    'write -b 1 512',
    'write -b 0 5',
    'length',
    'map',
  ],
  'sizes and patterns': [
    'read -P 07 1M 512',
    'read -P +7 1M 512',
    'read -P -0 0 512',
    'read -P 08 0 512',
    'read 0x1k 512',
    'read 0.5k 512',
    'read 1e3 512',
    'read 9E 1',
    'read -1 512',
    'read --help 0 512',
    'write 0 3G',
    'write -z -n 0 3G',
    'aio_write -z 0 3G',
    'aio_flush',
    'writev 0 1G 1G',
    'truncate -m full 9E',
    'write -s . 0 512',
    'write -s nofile 0 512',
    'aio_write -P x -i 0 512',
    'aio_write -i -P x 0 512',
    'sleep -1',
    'sleep 010',
    'sigraise 99',
    'sigraise 10',
  ],
  'open with options': [
    'open -o x IMAGE',
    'open -o discard=x IMAGE',
    'open -o detect-zeroes=x IMAGE',
    'open -o overlap-check=foo IMAGE',
    'open -o file=xx IMAGE',
    'open -o l2-cache-size=x IMAGE',
    'open -o cache.direct=maybe IMAGE',
    'open -o driver=nope IMAGE',
    'open -o read-only=on IMAGE',
    'open -o file.filename=IMAGE IMAGE',
    'open -o driver=qcow2',
    'open -o IMAGE',
    'open -C -r IMAGE',
    'open -k IMAGE',
    'open -i foo IMAGE',
    'open -t foo IMAGE',
    'open a b',
    'open -o driver=raw IMAGE',
    'length',
    'info',
    'close',
    'open -o driver=raw,size=512 IMAGE',
    'length',
    'close',
    'open -o driver=file IMAGE',
    'info',
    'close',
    'open -o file.filename=IMAGE,driver=qcow2,lazy-refcounts=on',
    'info',
    'close',
    'open -k -n IMAGE',
    'read 1M 4k',
    'close',
    'open -r IMAGE',
    'write 0 512',
    'close',
    'open -s IMAGE',
    'write 0 512',
    'map',
  ],
  'reopen with options': [
    'reopen -r -o read-only=on',
    'reopen -o read-only=x',
    'reopen -c none -o cache.direct=on',
    'reopen -c x -r -w',
    'reopen -o foo=bar',
    'reopen -o foo=1,read-only=on',
    'reopen -o driver=raw',
    'reopen -o driver=qcow2',
    'reopen -o node-name=x',
    'reopen -o file.locking=on',
    'reopen -o backing=foo',
    'reopen -o data-file=x',
    'reopen -o force-share=on',
    'reopen -o discard=x',
    'reopen -o detect-zeroes=x',
    'reopen -o l2-cache-size=x',
    'reopen -o lazy-refcounts=x',
    'reopen -o help',
    'reopen -o discard=off',
    'discard 1M 64k',
    'reopen -o discard=unmap,l2-cache-size=1M',
    'discard 1M 64k',
    'map',
    'reopen -o read-only=on',
    'write 0 512',
    'reopen -r',
    'reopen -o read-only=on',
    'write 0 512',
    'reopen -o read-only=off',
    'write 0 512',
    'info',
  ],
  quit: ['read 0 512', 'quit', 'read 0 512'],
};

describe('the same commands', () => {
  for (const [name, commands] of Object.entries(GROUPS)) {
    test(`${name}, qcow2`, (context) => {
      requirePeer(context, 'qemu-io', 'qemu-img');
      compare(image, ['-f', 'qcow2'], commands);
    });
  }
  for (const name of ['read', 'write', 'vectors', 'size', 'allocation'] as const) {
    test(`${name}, raw`, (context) => {
      requirePeer(context, 'qemu-io', 'qemu-img');
      compare(raw, ['-f', 'raw'], GROUPS[name]!);
    });
  }
});

describe('options', () => {
  const cases: readonly (readonly string[])[] = [
    ['-r', '-c', 'write 0 512'],
    ['-t', 'foo'],
    ['-d', 'foo'],
    ['-i', 'foo'],
    ['-U', '-c', 'length'],
    ['-r', '-U', '-c', 'length'],
    ['-n', '-c', 'read -q 0 512'],
    ['-m', '-c', 'read -P 7 1M 512'],
    ['-t', 'writethrough', '-c', 'write 0 512'],
    ['-t', 'unsafe', '-c', 'write 0 512', '-c', 'flush'],
    ['-f', 'nope'],
    ['-i', 'native', '-c', 'length'],
    ['-i', 'native', '-n', '-c', 'read 0 4k'],
    ['-i', 'io_uring', '-c', 'read 0 4k'],
    ['-s', '-c', 'write 0 512', '-c', 'read -P 0xcd 0 512', '-c', 'map', '-c', 'truncate 12M', '-c', 'info'],
    ['-s', '-r', '-c', 'write 0 512'],
    ['-s', '-U', '-c', 'read 1M 512'],
    ['-C', '-r'],
    ['-T', 'foo', '-c', 'length'],
    ['-c', 'length'],
  ];
  for (const args of cases) {
    test(args.join(' '), (context) => {
      requirePeer(context, 'qemu-io', 'qemu-img');
      compare(image, args, []);
    });
  }
  test('commands from standard input', (context) => {
    requirePeer(context, 'qemu-io', 'qemu-img');
    compare(image, [], [], 'read 0 512\nbogus\nlength\nquit\nread 0 1\n');
    compare(image, [], [], 'length\n');
    compare(image, [], [], 'length \r\n  length\n\nread\t0 512\naio_write 0 4k');
  });
  test('--image-opts', (context) => {
    requirePeer(context, 'qemu-io');
    const args = ['-r', '--image-opts', `driver=qcow2,file.filename=${image}`, '-c', 'length', '-c', 'map'];
    expect(run(qblockIo, image, args)).toEqual(run('qemu-io', image, args));
  });
});

describe('backing images', () => {
  const reads = [
    'read 0 512',
    'map',
    'readv 1000k 1M 3',
    'aio_read 7M 512',
    'aio_flush',
    'map',
    'read 11534335 1',
  ];
  for (const before of [[], ['-C'], ['-s'], ['-C', '-s']]) {
    test(`read with ${before.join(' ') || 'nothing'}`, (context) => {
      requirePeer(context, 'qemu-io', 'qemu-img');
      compare(overlay, before, [...reads, 'write 100k 1', 'read -P 7 1600k 4k', 'alloc 0 11M', 'map']);
    });
  }
});

test('the state of a virtual machine is where the other tool looks for it', (context) => {
  requirePeer(context, 'qemu-io', 'qemu-img');
  const file = path.join(folder, 'state');
  copyFileSync(image, file);
  expect(run(qblockIo, file, ['-c', 'write -b -P 5 1M 200k', file]).status).toBe(0);
  expect(run('qemu-io', file, ['-c', 'read -b -P 5 1M 200k', file]).stdout).not.toContain('failed');
  expect(run('qemu-io', file, ['-c', 'write -b -P 6 1100k 2k', file]).status).toBe(0);
  expect(run(qblockIo, file, ['-c', 'read -b -P 6 1100k 2k', file]).stdout).not.toContain('failed');
  expect(spawnSync('qemu-img', ['check', '-q', file]).status).toBe(0);
});

test('an image taken for raw does not turn into another format', (context) => {
  requirePeer(context, 'qemu-io', 'qemu-img');
  const header = `write -s ${image} `;
  const commands = [`${header}0 64k`, `${header}512 512`, `${header}0 100`, 'read -v 0 4', 'write -z 0 512'];
  const more = [`${header}1 511`, 'aio_write 0 512', 'aio_flush', 'write 3 9', 'writev 500 7 80', 'map'];
  compare(raw, [], [...commands, ...more]);
  compare(raw, ['-f', 'raw'], [...commands, ...more]);
});

test('random command lists leave the same content', (context) => {
  requirePeer(context, 'qemu-io', 'qemu-img');
  const offset = fc.integer({ min: 0, max: 10 << 20 });
  const bytes = fc.oneof(fc.integer({ min: 0, max: 200_000 }), fc.constantFrom(512, 4096, 65536, 1 << 20));
  const command = fc.oneof(
    fc
      .tuple(fc.integer({ min: 0, max: 255 }), offset, bytes)
      .map(([value, at, n]) => `write -P ${value} ${at} ${n}`),
    fc
      .tuple(fc.constantFrom('write -z', 'write -z -u', 'read', 'writev'), offset, bytes)
      .map(([verb, at, n]) => `${verb} ${at} ${n}`),
    fc.constantFrom('flush', 'map', 'truncate 9M', 'truncate 10M', 'alloc 0 10M'),
  );
  fc.assert(
    fc.property(fc.array(command, { minLength: 5, maxLength: 20 }), (commands) =>
      compare(image, ['-f', 'qcow2'], commands),
    ),
    { numRuns: 8, seed: 7 },
  );
});
