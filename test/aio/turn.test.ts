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

/** After moments that a loaded machine made too long some turns are without. */
const TURNS = 3000;

/** Whether a source is looked at twice in one of many turns. */
function gathers(source: Counted): boolean {
  for (let turn = 0; turn < TURNS; turn++) {
    source.looks = 0;
    runTurn(source);
    if (source.looks > 1) return true;
  }
  return false;
}

afterEach(() => {
  for (const source of used.splice(0)) forgetSource(source);
});

test('a server with many answers to give is left alone for a moment, and looked at again within the turn', () => {
  const server = sourceOf(16, null);
  expect(gathers(server)).toBe(true);
});

test('a client that waits for many answers is no reason to hurry, one that waits for one is', () => {
  const patient = sourceOf(0, 16);
  runTurn(patient);
  expect(gathers(sourceOf(16, null))).toBe(true);
  forgetSource(patient);
  runTurn(sourceOf(0, 1));
  expect(gathers(sourceOf(16, null))).toBe(false);
});

test('few answers to come are taken in as they come', () => {
  expect(gathers(sourceOf(2, null))).toBe(false);
});
