/** Deferred calls: nesting, one call per pair, and what happens outside a section. */

import { expect, test } from 'vitest';
import { deferCall, plug, unplug } from '../../src/aio/defer.ts';

test('outside a section a call runs at once', () => {
  const ran: string[] = [];
  deferCall((what: string) => ran.push(what), 'a');
  expect(ran).toEqual(['a']);
});

test('inside, each (function, argument) pair runs once, at the outermost unplug', () => {
  const ran: string[] = [];
  const one = (what: string): void => void ran.push(`one ${what}`);
  const two = (what: string): void => void ran.push(`two ${what}`);
  plug();
  plug();
  deferCall(one, 'a');
  deferCall(one, 'a');
  deferCall(one, 'b');
  deferCall(two, 'a');
  unplug();
  expect(ran).toEqual([]);
  unplug();
  expect(ran).toEqual(['one a', 'one b', 'two a']);
});

test("a call made inside somebody else's section waits for that section's end", () => {
  const ran: string[] = [];
  const deviceB = (): void => deferCall((what: string) => ran.push(what), 'b');
  plug(); // device A
  deviceB();
  expect(ran).toEqual([]);
  unplug();
  expect(ran).toEqual(['b']);
});

test('what a deferred call defers runs in the same unplug', () => {
  const ran: string[] = [];
  plug();
  deferCall(() => deferCall((what: string) => ran.push(what), 'later'), undefined);
  unplug();
  expect(ran).toEqual(['later']);
});

test('a call that throws does not lose the others, and the section is closed', () => {
  const ran: string[] = [];
  plug();
  deferCall(() => {
    throw new Error('broken');
  }, undefined);
  deferCall((what: string) => ran.push(what), 'a');
  expect(() => unplug()).toThrow('broken');
  expect(ran).toEqual(['a']);
  deferCall((what: string) => ran.push(what), 'at once');
  expect(ran).toEqual(['a', 'at once']);
});

test('unplug without plug is a bug', () => {
  expect(() => unplug()).toThrow('unplug without plug');
});
