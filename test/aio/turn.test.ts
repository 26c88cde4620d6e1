/** The turn of the event loop: when answers of a server that has many to give are gathered. */

import { afterEach, expect, test } from 'vitest';
import { forgetSource, runTurn, type Source } from '../../src/aio/loop/turn.ts';

interface Counted extends Source {
  looks: number;
}

const used: Counted[] = [];

/** A source that has five things at every look. */
function sourceOf(due: number, owed: number | null): Counted {
  const source: Counted = {
    ...{ looks: 0, isWaiting: true, leadBytes: 0, due, owed: owed === null ? null : () => owed },
    look: () => {
      source.looks++;
      return 5;
    },
  };
  used.push(source);
  return source;
}

afterEach(() => {
  for (const source of used.splice(0)) forgetSource(source);
});

// How often it is looked at depends on how long the moments are on this machine: a turn has its end.
test('a server with many answers to give is left alone for a moment, and looked at again within the turn', () => {
  const server = sourceOf(16, null);
  runTurn(server);
  expect(server.looks).toBeGreaterThan(1);
});

test('a client that waits for many answers is no reason to hurry, one that waits for one is', () => {
  const patient = sourceOf(0, 16);
  runTurn(patient);
  const server = sourceOf(16, null);
  runTurn(server);
  expect(server.looks).toBeGreaterThan(1);
  forgetSource(patient);
  runTurn(sourceOf(0, 1));
  const other = sourceOf(16, null);
  runTurn(other);
  expect(other.looks).toBe(1);
});

test('few answers to come are taken in as they come', () => {
  const server = sourceOf(2, null);
  runTurn(server);
  expect(server.looks).toBe(1);
});
