/** gluster against a real server (glusterd and a brick). */

import { execFile } from 'node:child_process';
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { Status } from '../../../src/block/contract/request.ts';
import { openRemote, type RemoteNode, testPattern } from '../../drivers/network/remote-node.ts';
import { makeScratchDir, repositoryRoot } from '../daemons.ts';
import { hasPeer, requirePeer } from '../requires.ts';
import { randomIo } from './random-io.ts';
import { type GlusterServer, startGluster } from './servers/gluster.ts';

const ready = hasPeer('glusterd') && hasPeer('libgfapi');
const run = promisify(execFile);
const MiB = 1024 * 1024;
const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
let dir: string;
let server: GlusterServer;
let remote: RemoteNode | null = null;

beforeAll(async () => {
  if (!ready) return;
  dir = makeScratchDir();
  server = await startGluster(dir);
});

afterEach(async () => {
  await remote?.close();
  remote = null;
});

afterAll(() => {
  if (!ready) return;
  server?.kill();
  rmSync(dir, { recursive: true, force: true });
});

async function open(file: string, more: Record<string, unknown> = {}): Promise<RemoteNode> {
  const place = {
    volume: server.volume,
    path: file,
    server: [{ type: 'inet', host: server.address, port: '24007' }],
    logfile: path.join(dir, 'client.log'),
  };
  remote = await openRemote(
    { driver: 'gluster', ...place, discard: 'unmap', ...more },
    { writable: more['read-only'] !== true },
  );
  return remote;
}

const name = (file: string): string => `gluster://${server.address}/${server.volume}/${file}`;
const onBrick = (file: string): string => path.join(server.brick, file);

test('random reads and writes, several at a time, end up on the brick; a brick that dies under way', async (context) => {
  requirePeer(context, 'glusterd', 'libgfapi');
  const model = testPattern(8 * MiB);
  writeFileSync(onBrick('model.img'), model);
  const node = await open('model.img');
  await randomIo(node, model, { rounds: 12, zeroes: true });
  expect(readFileSync(onBrick('model.img')).equals(model)).toBe(true);
  server.killBrick();
  await expect(node.read(0, 512)).rejects.toThrow(/not connected|Input\/output|descriptor in bad state/);
  server.startBrick();
  for (let tries = 0; ; tries++) {
    try {
      expect((await node.read(0, 4096)).equals(model.subarray(0, 4096))).toBe(true);
      break;
    } catch (error) {
      // The library looks for the brick every 3 s.
      if (tries === 60) throw error;
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
});

test('status, sizes, discards; the socket of the server; a brick that is silent for a while', async (context) => {
  requirePeer(context, 'glusterd', 'libgfapi');
  writeFileSync(onBrick('status.img'), '');
  const { node, backend, write, read } = await open('status.img', {
    server: [
      { type: 'unix', path: path.join(dir, 'none') },
      { type: 'unix', path: server.socket },
    ],
  });
  await backend.truncate(8 * MiB, true, 'off');
  await write(2 * MiB, testPattern(MiB));
  await backend.flush();
  const status = (offset: number) =>
    node.layer.graphLock.withRead(async (guard) => {
      const { flags, bytes } = await node.driver.blockStatus!(node, guard, true, offset, 8 * MiB - offset);
      return [(flags & Status.zero) === 0 ? 'data' : 'zero', bytes / MiB];
    });
  expect(await status(0)).toEqual(['zero', 2]);
  expect(await status(2 * MiB)).toEqual(['data', 1]);
  expect(await status(3 * MiB)).toEqual(['zero', 5]);
  await backend.pdiscard(2 * MiB, MiB);
  expect(await status(0)).toEqual(['zero', 8]);
  await backend.truncate(9 * MiB, true, 'falloc');
  expect(statSync(onBrick('status.img')).blocks * 512).toBeGreaterThanOrEqual(MiB);
  await backend.truncate(MiB, true, 'off');
  expect(statSync(onBrick('status.img')).size).toBe(MiB);
  await write(0, testPattern(4096, 3));
  await backend.flush();
  server.freezeBrick(true);
  try {
    const waiting = read(0, 4096);
    await new Promise((resolve) => setTimeout(resolve, 200));
    server.freezeBrick(false);
    expect(await waiting).toEqual(testPattern(4096, 3));
    server.freezeBrick(true);
    const given = expect(read(64 * 1024, 4096)).rejects.toThrow('canceled');
    await new Promise((resolve) => setTimeout(resolve, 100));
    node.driver.cancelInFlight?.(node);
    await given;
  } finally {
    server.freezeBrick(false);
  }
});

test('the tools: create, convert, names, errors', async (context) => {
  requirePeer(context, 'glusterd', 'libgfapi');
  const file = path.join(dir, 'data.img');
  writeFileSync(file, testPattern(3 * MiB));
  await run(img, ['convert', '-f', 'raw', '-O', 'qcow2', file, name('new.qcow2')]);
  await run(img, ['compare', '-f', 'raw', '-F', 'qcow2', file, name('new.qcow2')]);
  const overlay = path.join(dir, 'overlay.qcow2');
  await run(img, ['create', '-f', 'qcow2', '-b', name('new.qcow2'), '-F', 'qcow2', overlay]);
  await run(img, ['compare', '-f', 'raw', '-F', 'qcow2', file, overlay]);
  const { stdout } = await run(img, ['info', '--output=json', name('new.qcow2')]);
  expect(JSON.parse(stdout)).toMatchObject({ format: 'qcow2', filename: name('new.qcow2') });
  await run(img, ['create', '-f', 'raw', '-o', 'preallocation=full', name('full'), '1M']);
  expect(statSync(onBrick('full')).blocks * 512).toBeGreaterThanOrEqual(MiB);
  // In the original's words; asking it takes 10 s.
  const none = name('none');
  await expect(run(img, ['info', none])).rejects.toThrow(
    `Could not open '${none}': Could not open '${none}': No such file or directory`,
  );
});

/** $V: the volume's address. Said alike by qblock-img and qemu-img. */
const NAMES: readonly string[] = [
  'gluster://',
  'gluster://host/vol',
  'gluster://host/vol/',
  'gluster+unix:///vol/a',
  'gluster+unix://host/vol/a?socket=/none',
  'gluster+unix:///vol/a?socket=/none',
  '$V/a?b=c',
  'gluster://127.0.0.1:99999/vol/a',
  'gluster://127.0.0.1:1/vol/a',
  'json:{"driver":"gluster"}',
  'json:{"driver":"gluster","volume":"v","path":"p","server":[]}',
  'json:{"driver":"gluster","volume":"v","path":"p","server.0.host":"h"}',
  'json:{"driver":"gluster","volume":"v","path":"p","server.0.type":"inet"}',
  'json:{"driver":"gluster","volume":"v","path":"p","server.0.type":"inet","server.0.host":"h"}',
  'json:{"driver":"gluster","volume":"v","path":"p","server.0.type":"unix"}',
  'json:{"driver":"gluster","volume":"v","path":"p","server.0.type":"foo"}',
  'json:{"driver":"gluster","volume":"v","path":"p","server.0.type":"inet","server.0.host":"h","server.0.port":"1","server.0.to":5}',
];

test('names and options are answered as by the original', async (context) => {
  requirePeer(context, 'glusterd', 'libgfapi', 'qemu-img', 'qemu-block-extra');
  const say = async (program: string, text: string): Promise<string> => {
    const image = text.replace('$V', `gluster://${server.address}/${server.volume}`);
    const ended = await run(program, ['info', image]).catch(
      (error: { stdout: string; stderr: string }) => error,
    );
    // Lines that start with a time are the library's.
    return (ended.stdout + ended.stderr).replace(/^\[.*\n/gm, '').replace(/^(qemu|qblock)-img: /gm, '');
  };
  await Promise.all(
    NAMES.map(async (text) => expect(await say(img, text), text).toBe(await say('qemu-img', text))),
  );
});
