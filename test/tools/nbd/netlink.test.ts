/** The kernel's NBD client: messages beside the documented layout, netlink with the kernel that runs, and a real device. */

import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { familyNumber } from '../../../src/tools/nbd/device.ts';
import {
  type Answers,
  connectRequest,
  disconnectRequest,
  familyRequest,
  readAnswers,
} from '../../../src/tools/nbd/netlink-messages.ts';
import { repositoryRoot } from '../../peers/daemons.ts';

const hex = (bytes: Buffer): string =>
  bytes
    .toString('hex')
    .replace(/(.{8})/g, '$1 ')
    .trim();
const NBD = path.join(repositoryRoot, 'daemon/bin/qblock-nbd');

let dir = '';
let server: ChildProcess | null = null;
beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-netlink-'));
});
afterEach(() => {
  server?.kill('SIGKILL');
  rmSync(dir, { recursive: true, force: true });
});

test('messages are as linux/nbd-netlink.h and netlink(7) lay them out', () => {
  expect(hex(familyRequest('nbd'))).toBe(
    // length 28, type 16, REQUEST|ACK; number 1; GETFAMILY, version 1; FAMILY_NAME of 4 bytes
    '1c000000 10000500 01000000 00000000 03010000 08000200 6e626400',
  );
  const device = {
    index: 3,
    sizeBytes: 0x1_0000_2000,
    blockSizeBytes: 512,
    serverFlags: 0x25,
    sockets: [9, 10],
  };
  expect(hex(connectRequest(0x1f, device))).toBe(
    [
      '5c000000 1f000500 01000000 00000000 01010000',
      '08000100 03000000', // index
      '0c000200 00200000 01000000', // size
      '0c000300 00020000 00000000', // block size
      '0c000500 25000000 00000000', // server flags
      '1c000780 0c000180 08000100 09000000 0c000180 08000100 0a000000', // sockets, each with its fd
    ].join(' '),
  );
  expect(hex(disconnectRequest(0x1f, 3))).toBe(
    '1c000000 1f000500 01000000 00000000 02010000 08000100 03000000',
  );
});

test('answers: acknowledgements, errors, the number of a family, and what is cut off', () => {
  const read = (text: string): Answers => {
    const answers: Answers = { errno: null, family: null };
    readAnswers(Buffer.from(text.replaceAll(' ', ''), 'hex'), answers);
    return answers;
  };
  const ack = '24000000 02000000 01000000 01000000 00000000 1c000000 10000500 01000000 00000000';
  expect(read(ack)).toEqual({ errno: 0, family: null });
  expect(read('14000000 02000000 01000000 01000000 f0ffffff')).toEqual({ errno: 16, family: null });
  const family = '24000000 10000000 01000000 01000000 01020000 08000200 6e626400 06000100 1f000000';
  expect(read(`${family} ${ack}`)).toEqual({ errno: 0, family: 0x1f });
  for (const cut of [1, 15, 17, 23, 35])
    expect(read(family.replaceAll(' ', '').slice(0, cut * 2))).toEqual({ errno: null, family: null });
  expect(read('00000000 02000000 01000000 01000000')).toEqual({ errno: null, family: null });
});

test('the kernel that runs answers for families it has and has not', async () => {
  expect(await familyNumber('nlctrl')).toBe(0x10);
  await expect(familyNumber('no-such')).rejects.toThrow("The kernel has no netlink family 'no-such'");
});

test('without the device the error is the original one; a file is no device', () => {
  const run = (...words: string[]) => spawnSync(NBD, words, { cwd: dir, encoding: 'utf8' });
  writeFileSync(path.join(dir, 'disk'), Buffer.alloc(1 << 20));
  const no = '/dev/no-such-nbd0';
  const connect = run('-f', 'raw', '-k', path.join(dir, 's'), '-c', no, 'disk');
  expect([connect.stderr, connect.status]).toEqual([
    `qblock-nbd: Failed to open ${no}: No such file or directory\n`,
    1,
  ]);
  expect(existsSync(path.join(dir, 's'))).toBe(false);
  const disconnect = run('-d', no);
  expect([disconnect.stderr, disconnect.status]).toEqual([
    `qblock-nbd: Cannot open ${no}: No such file or directory\n`,
    1,
  ]);
  expect(run('-d', 'disk').stderr).toContain('it is no NBD device of the kernel');
});

test('a device of the kernel is connected, read, written and disconnected', (context) => {
  spawnSync('modprobe', ['nbd']);
  const free = existsSync('/dev')
    ? readdirSync('/dev').find((name) => /^nbd\d+$/.test(name) && !existsSync(`/sys/block/${name}/pid`))
    : undefined;
  const reason = 'the kernel has no nbd (no module, or no permission)';
  if (free === undefined) return context.skip(reason);
  const device = `/dev/${free}`;
  const image = path.join(dir, 'disk');
  writeFileSync(image, Buffer.alloc(4 << 20, 7));
  execFileSync(NBD, ['-f', 'raw', '-c', device, image]);
  try {
    // The parent has gone, so the device is there.
    expect(readFileSync(`/sys/block/${free}/size`, 'latin1').trim()).toBe(String((4 << 20) / 512));
    execFileSync('dd', [`of=${device}`, 'if=/dev/zero', 'bs=64k', 'count=1', 'oflag=direct', 'status=none']);
    expect(execFileSync('head', ['-c', '65537', device])).toEqual(
      Buffer.concat([Buffer.alloc(65536), Buffer.alloc(1, 7)]),
    );
  } finally {
    execFileSync(NBD, ['-d', device]);
  }
  expect(readFileSync(image).subarray(0, 65536)).toEqual(Buffer.alloc(65536));
});

test('what the kernel would be given is a connection in the transmission phase, with simple replies', async () => {
  // The peer here is the server only; see the device above for all of it.
  writeFileSync(path.join(dir, 'disk'), Buffer.alloc(1 << 20, 5));
  const socket = path.join(dir, 's');
  server = spawn(NBD, ['-f', 'raw', '-t', '-k', socket, path.join(dir, 'disk')], { stdio: 'ignore' });
  while (!existsSync(socket)) await new Promise((resolve) => setTimeout(resolve, 10));
  const { createEngine } = await import('../../../src/aio/create-engine.ts');
  const { connectTo } = await import('../../../src/aio/sockets.ts');
  const { detachDescriptor } = await import('../../../src/aio/socket-stream.ts');
  const { openExport } = await import('../../../src/nbd/client/handshake.ts');
  const { ReceiveBuffer } = await import('../../../src/nbd/protocol/receive-buffer.ts');
  const { Socket } = await import('node:net');
  const { engine } = createEngine('auto');
  const stream = engine.adoptSocket(
    await connectTo({ type: 'unix', path: socket }, { pauseOnConnect: true }),
  );
  const wishes = { exportName: '', context: '', simple: true, startTls: null };
  const { exp } = await openExport(stream, new ReceiveBuffer(), wishes);
  expect([exp.sizeBytes, exp.structured, exp.extended]).toEqual([1 << 20, false, false]);
  const kernel = new Socket({ fd: detachDescriptor(stream) });
  const request = Buffer.alloc(28);
  request.writeUInt32BE(0x25609513, 0);
  request.writeUInt32BE(0x77, 12);
  request.writeUInt32BE(512, 24);
  kernel.write(request);
  const parts: Buffer[] = [];
  for await (const part of kernel as AsyncIterable<Buffer>) {
    parts.push(part);
    if (Buffer.concat(parts).length >= 16 + 512) break;
  }
  const reply = Buffer.concat(parts);
  expect(reply.readUInt32BE(0)).toBe(0x67446698);
  expect(reply.subarray(16)).toEqual(Buffer.alloc(512, 5));
  engine.close();
});
