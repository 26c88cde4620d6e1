/** Rate limits and broadcast of events. */

import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { Events } from '../../schema/generated/types.ts';
import { EventHub } from '../../src/qmp/events.ts';
import { QmpSession } from '../../src/qmp/session.ts';
import { testDispatcher } from './qmp-server.ts';

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

function listen(
  hub: EventHub,
  pretty = false,
): { readonly texts: string[]; readonly reasons: () => unknown[] } {
  const texts: string[] = [];
  const session = new QmpSession({
    dispatcher: testDispatcher(),
    send: (text) => {
      texts.push(text);
      return true;
    },
    close: () => undefined,
    pause: () => undefined,
    resume: () => undefined,
    pretty,
  });
  session.receive(Buffer.from('{"execute":"qmp_capabilities"}'));
  texts.length = 0;
  hub.subscribe(session);
  return { texts, reasons: () => texts.map((text) => JSON.parse(text).data.reason) };
}

function ioError(reason: string, more: Partial<Events['BLOCK_IO_ERROR']> = {}): Events['BLOCK_IO_ERROR'] {
  return {
    'qom-path': '/exports/e',
    device: '',
    'node-name': 'n',
    operation: 'write',
    action: 'report',
    reason,
    ...more,
  };
}

test('of many I/O errors the first goes out at once and the last after a second', () => {
  const hub = new EventHub();
  const { reasons } = listen(hub);
  for (let i = 0; i < 100; i++) hub.emit('BLOCK_IO_ERROR', ioError(`e${i}`));
  expect(reasons()).toEqual(['e0']);
  vi.advanceTimersByTime(1000);
  expect(reasons()).toEqual(['e0', 'e99']);
  hub.emit('BLOCK_IO_ERROR', ioError('soon'));
  expect(reasons()).toEqual(['e0', 'e99']);
  vi.advanceTimersByTime(1000);
  expect(reasons()).toEqual(['e0', 'e99', 'soon']);
  vi.advanceTimersByTime(1000);
  hub.emit('BLOCK_IO_ERROR', ioError('later'));
  expect(reasons()).toEqual(['e0', 'e99', 'soon', 'later']);
});

test('other nodes and errors that stop a device are not held back', () => {
  const hub = new EventHub();
  const { reasons } = listen(hub);
  hub.emit('BLOCK_IO_ERROR', ioError('a'));
  hub.emit('BLOCK_IO_ERROR', ioError('b', { 'qom-path': '/exports/m' }));
  hub.emit('BLOCK_IO_ERROR', ioError('c', { action: 'stop' }));
  expect(reasons()).toEqual(['a', 'b', 'c']);
});

test('what is held back goes out at the end of the daemon', () => {
  const hub = new EventHub();
  const { reasons } = listen(hub);
  hub.emit('BLOCK_IO_ERROR', ioError('a'));
  hub.emit('BLOCK_IO_ERROR', ioError('b'));
  hub.flush();
  expect(reasons()).toEqual(['a', 'b']);
});

test('each session gets its form of an event', () => {
  const hub = new EventHub();
  const plain = listen(hub);
  const pretty = listen(hub, true);
  hub.emit('BLOCK_EXPORT_DELETED', { id: 'e' });
  expect(plain.texts[0]).toMatch(
    /^\{"timestamp": \{"seconds": \d+, "microseconds": \d{1,6}\}, "event": "BLOCK_EXPORT_DELETED", "data": \{"id": "e"\}\}\r\n$/,
  );
  expect(pretty.texts[0]).toMatch(/^\{\r\n {4}"timestamp": \{\r\n {8}"seconds": \d+,\r\n/);
});
