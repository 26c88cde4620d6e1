/** Sessions without a transport: negotiation, order, queueing, flow control, end. */

import { expect, test } from 'vitest';
import type { Handlers } from '../../src/qmp/dispatch.ts';
import { EventHub } from '../../src/qmp/events.ts';
import { QmpSession } from '../../src/qmp/session.ts';
import { type TestContext, testDispatcher } from './qmp-server.ts';

interface Harness {
  readonly session: QmpSession;
  /** What was sent, parsed, without the greeting. */
  readonly sent: Record<string, unknown>[];
  readonly calls: string[];
  /** What `send` answers. */
  keepsUp: boolean;
  type(text: string): void;
}

const NEGOTIATE = '{"execute":"qmp_capabilities"}';
const NEGOTIATE_OOB = '{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}';

function open(overrides: Partial<Handlers<TestContext>> = {}, negotiate = NEGOTIATE): Harness {
  const calls: string[] = [];
  const sent: Record<string, unknown>[] = [];
  const session = new QmpSession({
    dispatcher: testDispatcher(overrides, () => calls.push('shutdown')),
    send: (text) => {
      expect(text.endsWith('\r\n')).toBe(true);
      sent.push(JSON.parse(text));
      return harness.keepsUp;
    },
    close: () => calls.push('close'),
    pause: () => calls.push('pause'),
    resume: () => calls.push('resume'),
    reportBug: () => calls.push('bug'),
  });
  const harness: Harness = {
    session,
    sent,
    calls,
    keepsUp: true,
    type: (text) => session.receive(Buffer.from(text)),
  };
  session.start();
  if (negotiate !== '') harness.type(negotiate);
  sent.splice(0, negotiate === '' ? 1 : 2);
  return harness;
}

/** A command that ends when told so. */
function slowCommand(): {
  readonly handlers: Partial<Handlers<TestContext>>;
  readonly finish: (() => void)[];
} {
  const finish: (() => void)[] = [];
  return {
    finish,
    handlers: { 'query-block': () => new Promise((resolve) => finish.push(() => resolve([]))) },
  };
}

const settle = () => new Promise((resolve) => setImmediate(resolve));
const query = (id: number) => `{"execute":"query-block","id":${id}}`;
const ids = (harness: Harness) => harness.sent.map((message) => message.id);

test('without oob a command waits for the one before it, and reading pauses', async () => {
  const { handlers, finish } = slowCommand();
  const harness = open(handlers);
  harness.type(`${query(1)}${query(2)}{"foo":1}`);
  expect(finish).toHaveLength(1);
  expect(harness.sent).toEqual([]);
  expect(harness.calls).toEqual(['pause']);
  finish[0]?.();
  await settle();
  expect(ids(harness)).toEqual([1]);
  finish[1]?.();
  await settle();
  expect(harness.sent[2]).toEqual({
    error: { class: 'GenericError', desc: "QMP input member 'foo' is unexpected" },
  });
  expect(harness.calls).toEqual(['pause', 'resume']);
});

test('with oob eight commands wait, and an out-of-band command overtakes them', async () => {
  const { handlers, finish } = slowCommand();
  const harness = open(handlers, NEGOTIATE_OOB);
  harness.type(`${query(0)}${query(1)}{"exec-oob":"query-block","id":"oob"}`);
  expect(ids(harness)).toEqual(['oob']);
  for (let id = 2; id <= 8; id++) harness.type(query(id));
  expect(harness.calls).toEqual([]);
  harness.type(`${query(9)}{"exec-oob":"query-block","id":"late"}`);
  expect(harness.calls).toEqual(['pause']);
  for (let i = 0; i < 10; i++) {
    finish[i]?.();
    await settle();
  }
  expect(ids(harness)).toEqual(['oob', 0, 1, 'late', 2, 3, 4, 5, 6, 7, 8, 9]);
  expect(harness.calls).toEqual(['pause', 'resume']);
});

test('a client that does not read gets no more commands done', () => {
  const harness = open();
  harness.keepsUp = false;
  harness.type('{"execute":"query-version","id":1}{"execute":"query-version","id":2}');
  expect(ids(harness)).toEqual([1]);
  expect(harness.calls).toEqual(['pause']);
  harness.keepsUp = true;
  harness.session.drained();
  expect(ids(harness)).toEqual([1, 2]);
  expect(harness.calls).toEqual(['pause', 'resume']);
});

test('one command at a time never pauses', async () => {
  const { handlers, finish } = slowCommand();
  const harness = open(handlers);
  for (let i = 0; i < 3; i++) {
    harness.type(`${query(i)}\r\n`);
    finish[i]?.();
    await settle();
  }
  expect(ids(harness)).toEqual([0, 1, 2]);
  expect(harness.calls).toEqual([]);
});

test('a client that lets events pile up is cut off', () => {
  const harness = open();
  const hub = new EventHub();
  hub.subscribe(harness.session);
  const emit = () => hub.emit('BLOCK_EXPORT_DELETED', { id: 'x'.repeat(1000) });
  emit();
  harness.keepsUp = false;
  for (let i = 0; i < 10_000; i++) emit();
  expect(harness.calls).toEqual(['close']);
  expect(harness.sent.length).toBeLessThan(5_000);
});

test('a transport that goes on delivering after pause is cut off', () => {
  const { handlers } = slowCommand();
  const harness = open(handlers);
  harness.type(`${query(1)}${query(2)}${query(3)}`);
  for (let i = 0; i < 40; i++) harness.session.receive(Buffer.alloc(1024 * 1024, 0x20));
  expect(harness.calls).toEqual(['pause', 'close']);
});

test('no events before negotiation', () => {
  const harness = open({}, '');
  const hub = new EventHub();
  hub.subscribe(harness.session);
  hub.emit('BLOCK_EXPORT_DELETED', { id: 'e' });
  expect(harness.sent).toEqual([]);
  harness.type(NEGOTIATE);
  hub.emit('BLOCK_EXPORT_DELETED', { id: 'e' });
  expect(harness.sent[1]).toMatchObject({ event: 'BLOCK_EXPORT_DELETED', data: { id: 'e' } });
});

test('quit answers, then shuts down, and what follows is not read', async () => {
  const harness = open();
  harness.type('{"execute":"quit","id":1}{"execute":"query-version","id":2}');
  await settle();
  expect(harness.sent).toEqual([{ return: {}, id: 1 }]);
  expect(harness.calls).toEqual(['shutdown', 'pause']);
  harness.type('{"execute":"query-version","id":3}');
  expect(harness.sent).toHaveLength(1);
});

test('the result of a command is dropped when the client has gone', async () => {
  const { handlers, finish } = slowCommand();
  const harness = open(handlers);
  harness.type(`${query(1)}${query(2)}`);
  harness.session.disconnected();
  finish[0]?.();
  await settle();
  expect(harness.sent).toEqual([]);
  expect(finish).toHaveLength(1);
});

test('an error that is no BlockError is a bug, and the session lives on', async () => {
  const fail = (): never => {
    throw new TypeError('oops');
  };
  const harness = open({ 'query-block': fail, 'query-chardev': async () => fail() });
  harness.type(`${query(1)}{"execute":"query-chardev","id":2}`);
  await settle();
  harness.type('{"execute":"query-version","id":3}');
  expect(ids(harness)).toEqual([1, 2, 3]);
  expect(harness.sent[0]).toMatchObject({
    error: { class: 'GenericError', desc: expect.stringMatching(/^Internal error in 'query-block'.*report/) },
  });
  expect(JSON.stringify(harness.sent)).not.toContain('oops');
  expect(harness.calls.filter((call) => call === 'bug')).toHaveLength(2);
});

test('thousands of commands in one piece do not overflow the stack', async () => {
  const harness = open();
  harness.type(query(1).replace('query-block', 'query-version').repeat(20_000));
  // In pieces: others have turns in between.
  while (harness.sent.length < 20_000) await new Promise((resolve) => setImmediate(resolve));
  expect(harness.sent).toHaveLength(20_000);
});
