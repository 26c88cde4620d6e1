/** Reading the command line: long and short options, beginnings of names, arguments. */

import { describe, expect, test } from 'vitest';
import { OPTIONS, parseCommandLine } from '../../daemon/options.ts';

function parse(...words: string[]): unknown[] {
  return parseCommandLine(words).map((item) =>
    item.kind === 'operand' ? item.text : [item.name, item.value, item.text],
  );
}

test.each<[string[], unknown[]]>([
  [[], []],
  [['--blockdev', 'x'], [['blockdev', 'x', '--blockdev x']]],
  [['--blockdev=x=y'], [['blockdev', 'x=y', '--blockdev=x=y']]],
  [['-blockdev', 'x'], [['blockdev', 'x', '-blockdev x']]],
  [['--bl', 'x'], [['blockdev', 'x', '--bl x']]],
  [['--blockdev', ''], [['blockdev', '', '--blockdev ']]],
  [['--blockdev='], [['blockdev', '', '--blockdev=']]],
  [['--blockdev', '--help'], [['blockdev', '--help', '--blockdev --help']]],
  [
    ['-hV'],
    [
      ['help', '', '-hV'],
      ['version', '', '-V'],
    ],
  ],
  [['-Tx'], [['trace', 'x', '-Tx']]],
  [['-T', 'x'], [['trace', 'x', '-T x']]],
  [
    ['a', '-', '--daemonize'],
    ['a', '-', ['daemonize', '', '--daemonize']],
  ],
  [['--daemonize', '--', '--nope'], [['daemonize', '', '--daemonize']]],
])('%j', (words, expected) => {
  expect(parse(...words)).toEqual(expected);
});

test('help, man page and completions list the options in the order of their names', () => {
  const names = Object.keys(OPTIONS).slice(['help', 'trace', 'version'].length);
  expect(names).toEqual([...names].sort());
});

describe('errors', () => {
  test.each<[string[], string]>([
    [['--nope'], "unrecognized option '--nope'"],
    [['--nope=x'], "unrecognized option '--nope'"],
    [['-x'], "invalid option -- 'x'"],
    [['-hx'], "invalid option -- 'x'"],
    [['--blockdev'], "option '--blockdev' requires an argument"],
    [['-T'], "option requires an argument -- 'T'"],
    [['--daemonize=1'], "option '--daemonize' doesn't allow an argument"],
  ])('%j', (words, message) => {
    expect(() => parse(...words)).toThrow(message);
  });

  test('an ambiguous beginning', () => {
    // The original has one that begins so.
    expect(parse('--e', 'x', '--c', 'y')).toEqual([
      ['export', 'x', '--e x'],
      ['chardev', 'y', '--c y'],
    ]);
    expect(() => parse('--log', 'x')).toThrow(/^option '--log' is ambiguous; possibilities: '--log-file' /);
  });
});
