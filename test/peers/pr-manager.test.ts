/** Persistent reservation managers: a real helper, and ones that greet badly, beside the original. */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import path from 'node:path';
import { afterEach, expect, test } from 'vitest';
import { waitUntil } from '../patience.ts';
import { type Command, compareCommands } from './compare.ts';
import { makeScratchDir, startDaemon } from './daemons.ts';
import { withoutNewer } from './newer-members.ts';
import { requirePeer } from './requires.ts';

const cleanUps: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

function scratch(): string {
  const dir = makeScratchDir();
  cleanUps.push(() => rmSync(dir, { recursive: true }));
  return dir;
}

const add = (id: string, options: object): Command => [
  'object-add',
  { 'qom-type': 'pr-manager-helper', id, ...options },
];

/** What has come from clients by name of the socket. */
type Received = Map<string, Buffer>;

/** A helper that says `greeting` and leaves when `leaves`. */
async function greeter(dir: string, name: string, greeting: Buffer, leaves: boolean, received: Received) {
  const server: Server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.on('data', (bytes) =>
      received.set(name, Buffer.concat([received.get(name) ?? Buffer.alloc(0), bytes])),
    );
    if (leaves) socket.end(greeting);
    else socket.write(greeting);
  });
  server.listen(path.join(dir, name));
  await once(server, 'listening');
  cleanUps.push(() => server.close());
}

test('objects, nodes that name them, and what is refused', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  requirePeer(context, 'qemu-pr-helper');
  const dir = scratch();
  const socket = path.join(dir, 'pr.sock');
  const helper: ChildProcess = spawn('qemu-pr-helper', ['-q', '-k', socket], { stdio: 'ignore' });
  cleanUps.push(() => helper.kill());
  await waitUntil('the helper listens', () => existsSync(socket));
  const disk = path.join(dir, 'disk');
  writeFileSync(disk, Buffer.alloc(4096));
  const file = { driver: 'file', filename: disk };
  const reopen = (options: object): Command => [
    'blockdev-reopen',
    { options: [{ ...file, 'node-name': 'f', ...options }] },
  ];
  const { theirs, ours } = await compareCommands([
    add('p', {}),
    add('p', { path: path.join(dir, 'nobody') }),
    add('p', { path: '' }),
    add('p', { path: disk }),
    add('p', { path: `${dir}/${'x'.repeat(120)}` }),
    add('p', { path: 5 }),
    add('p', { path: socket, more: 1 }),
    ['object-add', { 'qom-type': 'pr-manager', id: 'p' }],
    add('p', { path: socket }),
    add('p', { path: socket }),
    ['qom-list', { path: '/objects/p' }],
    ['qom-get', { path: '/objects/p', property: 'path' }],
    ['qom-set', { path: '/objects/p', property: 'path', value: '/x' }],
    ['qom-set', { path: '/objects/p', property: 'path', value: 1 }],
    ['qom-get', { path: '/objects/p', property: 'path' }],
    ['query-pr-managers'],
    ['blockdev-add', { ...file, 'node-name': 'f', 'pr-manager': 'p' }],
    reopen({}),
    reopen({ 'pr-manager': 'p' }),
    reopen({ 'pr-manager': 'q' }),
    ['object-del', { id: 'p' }],
    ['object-del', { id: 'p' }],
    ['blockdev-del', { 'node-name': 'f' }],
    ['object-add', { 'qom-type': 'iothread', id: 'io' }],
    // The original does not live long after this one.
    ['blockdev-add', { ...file, 'node-name': 'f', 'pr-manager': 'io' }],
  ]);
  expect(withoutNewer(ours)).toEqual(theirs);
});

test('greetings, good and bad, and the events about them', async (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const dir = scratch();
  const kinds = { zeroes: [0, 0, 0, 0], features: [255, 255, 255, 255], short: [0, 0], nothing: [] };
  const told: unknown[] = [];
  for (const kind of ['qemu-storage-daemon', 'qblockd'] as const) {
    const received: Received = new Map();
    const daemon = await startDaemon(kind);
    cleanUps.push(() => daemon.stop());
    const client = await daemon.connect();
    await client.negotiate();
    const replies: unknown[] = [];
    for (const [name, bytes] of Object.entries(kinds)) {
      const socket = `${kind === 'qblockd' ? 'o' : 't'}-${name}`;
      await greeter(dir, socket, Buffer.from(bytes), bytes.length < 4, received);
      client.send(
        JSON.stringify({
          execute: 'object-add',
          arguments: { 'qom-type': 'pr-manager-helper', id: name, path: path.join(dir, socket) },
        }),
      );
      const both = [await client.next(), await client.next()];
      // Which of the two comes first is not promised.
      const event = both.find((message) => message !== null && 'event' in message) as {
        event: string;
        data: unknown;
      };
      replies.push(
        both.find((message) => message !== null && !('event' in message)),
        event.event,
        event.data,
      );
      if (bytes.length === 4) {
        await waitUntil('the helper has an answer', () => received.get(socket)?.length === 4);
        replies.push([...(received.get(socket) ?? [])]);
      }
    }
    client.close();
    told.push(replies);
  }
  expect(told[1]).toEqual(told[0]);
});
