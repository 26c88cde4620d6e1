/** The table of devices: names, users, failures half-way. */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { BackendEvents } from '../../src/chardev/backend.ts';
import { ChardevTable } from '../../src/chardev/table.ts';
import { ObjectTree } from '../../src/objects/tree.ts';

let dir = '';
let warnings: string[] = [];
let objects = new ObjectTree();
let table = new ChardevTable(objects, {
  daemonized: false,
  warn: () => undefined,
  requestShutdown: () => undefined,
});

beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-chr-'));
  warnings = [];
  objects = new ObjectTree();
  table = new ChardevTable(objects, {
    daemonized: false,
    warn: (text) => warnings.push(text),
    requestShutdown: () => undefined,
  });
});
afterEach(() => {
  table.closeAll();
  rmSync(dir, { recursive: true });
});

/** A user that writes down what happens. */
function recorder(): BackendEvents & { readonly events: string[] } {
  const events: string[] = [];
  return {
    events,
    opened: () => void events.push('opened'),
    ended: () => void events.push('ended'),
    closed: () => void events.push('closed'),
    received: (data) => void events.push(`received ${data.toString()}`),
    drained: () => void events.push('drained'),
  };
}

function socketOptions(name: string, wait = false) {
  const addr = { type: 'unix', data: { path: path.join(dir, name) } } as const;
  return { type: 'socket', data: { addr, wait } } as const;
}

test('a name is taken while its device is being made', async () => {
  const adding = table.add('a', socketOptions('a', true));
  expect(table.has('a')).toBe(true);
  expect(table.find('a')).toBeNull();
  await expect
    .poll(() => warnings)
    .toEqual([expect.stringContaining('waiting for connection on: disconnected:unix:')]);
  const client = connect(path.join(dir, 'a')).on('error', () => undefined);
  await adding;
  expect(table.find('a')?.backend.filename()).toBe(`unix:${path.join(dir, 'a')},server=on`);
  client.destroy();
});

test('waiting for a client ends with the daemon, and leaves nothing', async () => {
  const adding = table.add('a', socketOptions('a', true));
  await expect.poll(() => warnings).toHaveLength(1);
  table.closeAll();
  await expect(adding).rejects.toThrow('the daemon ends');
  expect(() => readFileSync(path.join(dir, 'a'))).toThrow('ENOENT');
});

test('a device whose log file cannot be made is not made', async () => {
  const options = {
    type: 'socket',
    data: { ...socketOptions('a').data, logfile: path.join(dir, 'no/log') },
  } as const;
  await expect(table.add('a', options)).rejects.toThrow(
    /^Could not create '.*log': No such file or directory$/,
  );
  expect(table.has('a')).toBe(false);
  expect(() => readFileSync(path.join(dir, 'a'))).toThrow('ENOENT');
  await table.add('a', socketOptions('a'));
});

test('output is logged', async () => {
  const logfile = path.join(dir, 'log');
  await table.add('n', { type: 'null', data: { logfile } });
  table.find('n')?.write(Buffer.from('one\n'));
  await table.change('n', { type: 'null', data: { logfile, logappend: true } });
  table.find('n')?.write(Buffer.from('two\n'));
  expect(readFileSync(logfile, 'utf8')).toBe('one\ntwo\n');
});

test('a failed change leaves the device as it was', async () => {
  await table.add('r', { type: 'ringbuf', data: { size: 8 } });
  await expect(table.change('r', { type: 'ringbuf', data: { size: 7 } })).rejects.toThrow('power of two');
  expect(table.find('r')?.backend.kind).toBe('ringbuf');
  await table.change('r', { type: 'null', data: {} });
  expect(objects.resolve('/chardevs/r')).toMatchObject({ object: { typeName: 'chardev-null' } });
});

test('the user hears of peers in turn, and of each the right data', async () => {
  await table.add('s', socketOptions('s'));
  const device = table.find('s');
  const user = recorder();
  device?.attach({ ...user, ended: () => device.finish() });
  expect(() => device?.attach(recorder())).toThrow("Device 's' is in use");
  const first = connect(path.join(dir, 's')).on('error', () => undefined);
  first.write('1');
  await expect.poll(() => user.events).toEqual(['opened', 'received 1']);
  const second = connect(path.join(dir, 's')).on('error', () => undefined);
  second.write('2');
  first.destroy();
  await expect.poll(() => user.events).toContain('received 2');
  expect(user.events.filter((event) => event !== 'ended').slice(2)).toEqual([
    'closed',
    'opened',
    'received 2',
  ]);
  second.destroy();
});

test('a peer without a user is kept, and read when one comes', async () => {
  await table.add('s', socketOptions('s'));
  const client = connect(path.join(dir, 's')).on('error', () => undefined);
  client.write('early');
  const device = table.find('s');
  await expect.poll(() => device?.backend.filename()).toMatch(/^unix:/);
  const user = recorder();
  device?.attach(user);
  await expect.poll(() => user.events).toEqual(['opened', 'received early']);
  device?.detach();
  client.destroy();
});

test('many clients at once are served or turned away, none is kept without bound', async () => {
  await table.add('s', socketOptions('s'));
  table.find('s')?.attach(recorder());
  const clients = Array.from({ length: 60 }, () => connect(path.join(dir, 's')).on('error', () => undefined));
  await expect
    .poll(() => clients.filter((client) => client.destroyed || client.readableEnded).length)
    .toBeGreaterThan(30);
  for (const client of clients) client.destroy();
});

test('datagrams go both ways', async () => {
  const { createSocket } = await import('node:dgram');
  const peer = createSocket('udp4');
  await new Promise<void>((resolve) => peer.bind(0, '127.0.0.1', resolve));
  const remote = { type: 'inet', data: { host: '127.0.0.1', port: String(peer.address().port) } } as const;
  await table.add('u', { type: 'udp', data: { remote } });
  const user = recorder();
  const device = table.find('u');
  device?.attach(user);
  const message = new Promise<{ text: string; port: number }>((resolve) =>
    peer.once('message', (data, from) => resolve({ text: data.toString(), port: from.port })),
  );
  device?.write(Buffer.from('hello'));
  const { text, port } = await message;
  expect(text).toBe('hello');
  peer.send('there', port, '127.0.0.1');
  await expect.poll(() => user.events).toEqual(['opened', 'received there']);
  peer.close();
});
