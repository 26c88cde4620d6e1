/** The multiplexer: whose the input is, and its own keys. */

import { expect, test } from 'vitest';
import type { BackendEvents, ChardevBackend } from '../../src/chardev/backend.ts';
import { Chardev } from '../../src/chardev/chardev.ts';
import { openMux } from '../../src/chardev/mux.ts';

/** A multiplexer over a device in memory, with `count` users. */
function setUp(count: number) {
  const nothing = (): void => undefined;
  let events: BackendEvents | null = null;
  const state = { output: '', reading: true, shutdowns: 0 };
  const backend: ChardevBackend = {
    kind: 'null',
    typeName: 'chardev-null',
    accessors: {},
    filename: () => 'test',
    start: (newEvents) => {
      events = newEvents;
      events.opened();
    },
    stop: () => {
      events = null;
    },
    write: (data) => {
      state.output += data.toString('latin1');
    },
    backlogBytes: () => 0,
    setReading: (reading) => {
      state.reading = reading;
    },
    close: nothing,
  };
  const base = new Chardev('base', backend, null);
  const mux = new Chardev(
    'mux',
    openMux(base, () => state.shutdowns++),
    null,
  );
  const inputs = Array.from({ length: count }, () => ({ text: '', opened: 0 }));
  const ports = inputs.map((input) =>
    mux.attach({
      opened: () => void input.opened++,
      ended: nothing,
      closed: nothing,
      drained: nothing,
      received: (data) => {
        input.text += data.toString('latin1');
      },
    }),
  );
  const type = (text: string): void => events?.received(Buffer.from(text, 'latin1'));
  return { base, mux, ports, inputs, state, type, texts: () => inputs.map(({ text }) => text) };
}

test('the newest user has the focus; C-a c moves it on', () => {
  const { type, texts, inputs } = setUp(3);
  expect(inputs.map(({ opened }) => opened)).toEqual([1, 1, 1]);
  for (const text of ['one', '\x01', 'ctwo', '\x01cthree\x01', 'c', 'four']) type(text);
  expect(texts()).toEqual(['two', 'three', 'onefour']);
});

test('C-a C-a is the character, other keys are taken out', () => {
  const { type, texts } = setUp(1);
  type('a\x01\x01b\x01qc\x01b\x01sd');
  expect(texts()).toEqual(['a\x01bcd']);
});

test('output of all users goes out; help, time stamps and exit', () => {
  const { type, ports, state } = setUp(2);
  for (const port of ports) port.write(Buffer.from('x\n'));
  expect(state.output).toBe('x\nx\n');
  type('\x01h');
  expect(state.output).toContain('C-a c    switch between console and monitor\n\r');
  state.output = '';
  type('\x01t');
  ports[0]?.write(Buffer.from('one\ntwo\n'));
  expect(state.output).toMatch(/^one\n\[00:00:00\.\d{3}\] two\n$/);
  type('\x01t');
  expect(state.shutdowns).toBe(0);
  type('\x01x');
  expect(state.shutdowns).toBe(1);
});

test('the device is read as long as the user in focus reads', () => {
  const { type, ports, state, mux, base } = setUp(2);
  ports[0]?.setReading(false);
  expect(state.reading).toBe(true);
  type('\x01c');
  expect(state.reading).toBe(false);
  ports[0]?.setReading(true);
  expect(state.reading).toBe(true);
  expect([mux.inUse, mux.hasOpenUser, base.inUse, base.hasOpenUser]).toEqual([true, true, true, true]);
});

test('four users, and no more', () => {
  const { mux } = setUp(4);
  const attach = (): unknown =>
    mux.attach({ opened() {}, ended() {}, closed() {}, drained() {}, received() {} });
  expect(attach).toThrow("Device 'mux' is in use");
});
