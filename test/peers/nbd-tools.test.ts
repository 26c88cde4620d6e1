/** The NBD server through the clients people use: nbdinfo, nbdcopy, qemu-io, qemu-img, qemu-nbd, Python's libnbd. */

import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type RunningDaemon, startDaemon } from './daemons.ts';
import { type PeerName, requirePeer } from './requires.ts';

const run = promisify(execFile);
const MIB = 1024 * 1024;
const DATA = randomBytes(2 * MIB);
let daemon: RunningDaemon;

/** 16 MiB: 2 MiB of data, a hole, 2 MiB of data at 8 MiB, a hole. */
function makeDisk(file: string): void {
  writeFileSync(file, DATA);
  truncateSync(file, 8 * MIB);
  writeFileSync(file, DATA, { flag: 'a' });
  truncateSync(file, 16 * MIB);
}

beforeAll(async () => {
  daemon = await startDaemon('qblockd', {
    prepare: (dir) => {
      for (const name of ['disk', 'ro', 'model']) makeDisk(path.join(dir, `${name}.raw`));
    },
    args: [
      ['--blockdev', 'driver=file,node-name=disk,filename=$DIR/disk.raw,discard=unmap'],
      ['--blockdev', 'driver=file,node-name=ro,filename=$DIR/ro.raw,read-only=on'],
      ['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd.sock'],
      ['--export', 'type=nbd,id=disk,node-name=disk,writable=on,description=a disk'],
      ['--export', 'type=nbd,id=ro,node-name=ro,allocation-depth=on'],
    ].flat(),
  });
});
afterAll(() => daemon?.stop());

const uri = (name: string) => `nbd+unix:///${name}?socket=${path.join(daemon.dir, 'nbd.sock')}`;
const file = (name: string) => path.join(daemon.dir, name);

/** A test that needs peers and runs programs. */
function peerTest(name: string, peers: readonly PeerName[], body: () => Promise<void>): void {
  test(name, async (context) => {
    requirePeer(context, ...peers);
    await body();
  });
}

peerTest('nbdinfo describes the exports', ['nbdinfo'], async () => {
  const { stdout } = await run('nbdinfo', ['--list', '--json', uri('')]);
  const { exports } = JSON.parse(stdout) as { exports: Record<string, unknown>[] };
  const [disk, ro] = exports;
  expect(exports).toHaveLength(2);
  expect(disk).toMatchObject({
    'export-name': 'disk',
    description: 'a disk',
    'export-size': 16 * MIB,
    contexts: ['base:allocation'],
    is_read_only: false,
    can_cache: true,
    can_df: true,
    can_fast_zero: true,
    can_flush: true,
    can_fua: true,
    can_multi_conn: true,
    can_trim: true,
    can_zero: true,
    block_size_minimum: 1,
    block_size_preferred: 4096,
    block_size_maximum: 33554432,
  });
  expect(ro).toMatchObject({
    'export-name': 'ro',
    contexts: ['base:allocation', 'qemu:allocation-depth'],
    is_read_only: true,
    can_trim: false,
    can_zero: false,
  });
});

peerTest('nbdinfo maps data and holes', ['nbdinfo'], async () => {
  const { stdout } = await run('nbdinfo', ['--map', uri('ro')]);
  expect(
    stdout
      .replace(/ +/g, ' ')
      .trim()
      .split('\n')
      .map((line) => line.trim()),
  ).toEqual([
    '0 2097152 0 data',
    '2097152 6291456 3 hole,zero',
    '8388608 2097152 0 data',
    '10485760 6291456 3 hole,zero',
  ]);
});

peerTest('qemu-nbd lists the exports', ['qemu-nbd'], async () => {
  const { stdout } = await run('qemu-nbd', ['--list', '-k', file('nbd.sock')]);
  expect(stdout).toContain('exports available: 2');
  expect(stdout).toContain("export: 'disk'");
  expect(stdout).toContain('description: a disk');
  expect(stdout).toMatch(/flags: 0xded \( flush fua trim zeroes df multi cache fast-zero \)/);
  expect(stdout).toContain('qemu:allocation-depth');
});

peerTest('nbdcopy copies out and in, with several connections', ['nbdcopy'], async () => {
  const original = readFileSync(file('ro.raw'));
  await run('nbdcopy', ['--connections=4', '--requests=64', uri('ro'), file('out.raw')]);
  expect(readFileSync(file('out.raw')).equals(original)).toBe(true);
  const other = randomBytes(16 * MIB);
  writeFileSync(file('in.raw'), other);
  await run('nbdcopy', ['--connections=4', '--flush', file('in.raw'), uri('disk')]);
  expect(readFileSync(file('disk.raw')).equals(other)).toBe(true);
  await run('nbdcopy', ['--destination-is-zero', uri('ro'), file('sparse.raw')]);
  expect(readFileSync(file('sparse.raw')).equals(original)).toBe(true);
});

peerTest('qemu-img compares and converts', ['qemu-img'], async () => {
  const { stdout } = await run('qemu-img', [
    'compare',
    '-f',
    'raw',
    '-F',
    'raw',
    '-U',
    uri('ro'),
    file('ro.raw'),
  ]);
  expect(stdout).toContain('Images are identical.');
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', '-n', uri('ro'), uri('disk')]);
  expect(readFileSync(file('disk.raw')).equals(readFileSync(file('ro.raw')))).toBe(true);
});

peerTest('qemu-io reads and writes', ['qemu-io'], async () => {
  const script = [
    'write -P 0xaa 1000 5000',
    'read -P 0xaa 1000 5000',
    'write -z 4096 4096',
    'read -P 0 4096 4096',
    'write -f -P 0xbb 3M 1M',
    'read -P 0xbb 3M 1M',
    'discard 3M 1M',
    'flush',
    'aio_write -P 0xcc 5M 64k',
    'aio_flush',
    'read -P 0xcc 5M 64k',
  ].flatMap((command) => ['-c', command]);
  const { stdout } = await run('qemu-io', ['-f', 'raw', ...script, uri('disk')]);
  expect(stdout).not.toMatch(/failed|verification/i);
  const bytes = readFileSync(file('disk.raw'));
  expect(bytes.subarray(1000, 4096).every((byte) => byte === 0xaa)).toBe(true);
  expect(bytes.subarray(4096, 8192).every((byte) => byte === 0)).toBe(true);
  expect(bytes.subarray(5 * MIB, 5 * MIB + 65536).every((byte) => byte === 0xcc)).toBe(true);
});

const LIBNBD = `
import nbd, sys, random
size = 16 << 20
handles = []
for structured in (False, True, True):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context("base:allocation")
    h.connect_uri(sys.argv[1])
    handles.append(h)
model = bytearray(handles[0].pread(size, 0))
rng = random.Random(int(sys.argv[2]))
for step in range(400):
    h = rng.choice(handles)
    offset = rng.randrange(size)
    count = min(rng.choice((1, 512, 4096, 5000, 65536, 300000)), size - offset)
    action = rng.choice(("read", "write", "zero", "flush", "trim", "status", "cache"))
    if action == "read":
        assert h.pread(count, offset) == model[offset:offset + count], (step, offset, count)
    elif action == "write":
        data = bytes((rng.randrange(256),)) * count
        h.pwrite(data, offset, rng.choice((0, nbd.CMD_FLAG_FUA)))
        model[offset:offset + count] = data
    elif action == "zero":
        h.zero(count, offset, rng.choice((0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA)))
        model[offset:offset + count] = bytes(count)
    elif action == "flush":
        h.flush()
    elif action == "trim":
        h.trim(count, offset)
        model[offset:offset + count] = h.pread(count, offset)
    elif action == "cache":
        h.cache(count, offset)
    elif h.get_structured_replies_negotiated():
        def extents(context, at, entries, error):
            assert context == "base:allocation"
            for length, flags in zip(entries[::2], entries[1::2]):
                end = min(at + length, size)
                if flags & nbd.STATE_ZERO:
                    assert not any(model[at:end]), (step, at, length)
                at = end
        h.block_status(count, offset, extents)
handles[1].flush()
for h in handles:
    assert h.pread(size, 0) == model
    h.shutdown()
open(sys.argv[3], "wb").write(model)
`;

peerTest('libnbd: three handles and a random model', ['nbdsh'], async () => {
  for (const seed of ['1', '2']) {
    await run('/usr/bin/python3', ['-c', LIBNBD, uri('disk'), seed, file('model.raw')]);
    expect(readFileSync(file('disk.raw')).equals(readFileSync(file('model.raw')))).toBe(true);
  }
});

const PIPELINE = `
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
count, block = 512, 65536
requests = []
for i in range(count):
    index, buf = i * 7919 % 256, nbd.Buffer(block)
    requests.append((index, buf, h.aio_pread(buf, index * block)))
for index, buf, cookie in requests:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
disk = open(sys.argv[2], "rb").read()
for index, buf, cookie in requests:
    assert buf.to_bytearray() == disk[index * block:(index + 1) * block], index
`;

peerTest('libnbd: five hundred reads in the pipe', ['nbdsh'], async () => {
  await run('/usr/bin/python3', ['-c', PIPELINE, uri('ro'), file('ro.raw')]);
});
