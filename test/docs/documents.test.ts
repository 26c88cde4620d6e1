/** Guides and examples do what they say: every block that can be run is run. */

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { blocksOf, difference, stepsOf } from '../../docs/site/document.ts';
import { COMMAND_ARGUMENTS, EVENT_NAMES } from '../../schema/generated/visitor-tables.ts';
import { repositoryRoot } from '../peers/daemons.ts';
import { runDocument } from './run-document.ts';

const documents = ['guides', 'examples'].flatMap((folder) =>
  readdirSync(path.join(repositoryRoot, 'docs', folder))
    .filter((name) => name.endsWith('.md'))
    .map((name) => path.join('docs', folder, name)),
);

describe.concurrent('what a document says happens', () => {
  test.for(documents)('%s', (name) => runDocument(path.join(repositoryRoot, name)));
});

describe('the reference has an example', () => {
  /** Commands that only this daemon has, for looking inside: what they say may change. */
  const isNew = (name: string): boolean => name.startsWith('x-query-');
  const steps = documents
    .filter((name) => name.includes('/examples/'))
    .flatMap((name) => blocksOf(readFileSync(path.join(repositoryRoot, name), 'utf8')))
    .filter(({ language }) => language === 'qmp')
    .flatMap(({ code }) => stepsOf(code).map(({ message }) => message));

  test('of each command', () => {
    const shown = new Set(steps.map(({ execute }) => execute));
    expect(Object.keys(COMMAND_ARGUMENTS).filter((name) => !isNew(name) && !shown.has(name))).toEqual([]);
  });

  test('of an error of each command that has arguments', () => {
    const refused = new Set<unknown>();
    for (const [index, message] of steps.entries())
      if ('error' in message) refused.add(steps[index - 1]?.execute);
    // They have no arguments that must be given, or none that could be wrong.
    const always = [
      'query-block',
      'query-named-block-nodes',
      'x-debug-query-block-graph',
      'query-qmp-schema',
    ];
    const expected = Object.entries(COMMAND_ARGUMENTS)
      .filter(([name, type]) => type !== null && !isNew(name) && !always.includes(name))
      .map(([name]) => name);
    expect(expected.filter((name) => !refused.has(name))).toEqual([]);
  });

  test('of each event', () => {
    const shown = new Set(steps.map(({ event }) => event));
    // Devices of virtual machines report the one; the other needs a helper that is a program of its own.
    const without = ['BLOCK_IO_ERROR', 'PR_MANAGER_STATUS_CHANGED'];
    expect(EVENT_NAMES.filter((name) => !without.includes(name) && !shown.has(name))).toEqual([]);
  });
});

describe('comparing with what a document says', () => {
  test.each([
    [{ return: {} }, { return: {} }, null],
    [{ return: {} }, { return: 1 }, '.return is no object'],
    [{ a: '...' }, { a: [1] }, null],
    [{ a: '...' }, {}, '.a is missing'],
    [{ a: 1 }, { a: 1, b: 2 }, '.b is not in the document'],
    [{ a: 1, '...': '...' }, { a: 1, b: 2 }, null],
    [[1, '...'], [1, 2, 3], null],
    [[1], [1, 2], ' has 2 elements'],
    [{ event: 'E' }, { event: 'E', timestamp: {} }, null],
    [{ a: ['x'] }, { a: ['y'] }, '.a[0] is "y", not "x"'],
  ])('%j and %j', (expected, actual, found) => {
    expect(difference(expected, actual)).toBe(found);
  });
});
