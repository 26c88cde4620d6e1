/**
 * Command lines of qemu-img, made at random from the tables of qblock-img's options, valid and not: what is new here
 * is left out. Each option of a command is in some line of every run.
 */

import type { CommandTable } from '../../../src/tools/common/command-table.ts';
import type { OptionDefinition } from '../../../src/tools/common/getopt.ts';
import type { Random } from '../../drivers/qcow2/random.ts';

/** Words by what an option calls its argument: good ones, and bad ones. */
const VALUES: Readonly<Record<string, readonly [good: readonly string[], bad: readonly string[]]>> = {
  FORMAT: [
    ['qcow2', 'raw'],
    ['nope', '', 'RAW', 'bochs'],
  ],
  CACHE: [
    ['none', 'writeback', 'writethrough', 'directsync', 'unsafe'],
    ['nope', ''],
  ],
  SIZE: [
    ['64k', '1M', '0x10000', '1.5M', '512', '0', '4096b', '+64k', ' 64k'],
    ['-1', 'x', '1x', '9E', '16E', '', '1.1', '0x1k', '1 M', '99999999999999999999'],
  ],
  N: [
    ['1', '4', '16', '0x2'],
    ['0', '-1', 'x', '17', '99999999999', ''],
  ],
  OPTIONS: [
    [
      'cluster_size=4k',
      'compat=0.10',
      'lazy_refcounts=on',
      'size=2M',
      'preallocation=off',
      'refcount_bits=1',
    ],
    ['foo=1', 'cluster_size=3', '', ',x=1', 'size=1M,', 'compat=9', 'lazy_refcounts=maybe', 'size=-1'],
  ],
  SNAPSHOT: [
    ['s1', 's2', '1', 'snapshot.name=s1', 'snapshot.id=2'],
    ['nope', '', 'snapshot.foo=1'],
  ],
  NAME: [['n1', 's1', 'n 2'], ['']],
  BITMAP: [
    ['b0', 'b1'],
    ['nope', ''],
  ],
  FILE: [
    ['base', 'raw', 'other'],
    ['nope', '', 'top'],
  ],
  BYTE: [
    ['0', '1', '255', '0xff'],
    ['256', 'x', '-1'],
  ],
  MODE: [['threads', 'ignore', 'off'], ['nope']],
  PATH: [['/tmp/no-such-folder/s'], ['s', '']],
  ID: [['x'], ['']],
  TEXT: [['text'], ['']],
  PORT: [['10809'], ['x', '-1']],
  OBJECT: [['secret,id=s0,data=abc'], ['secret', 'nope,id=x', '', 'secret,id=s0,foo=1', 'secret,id=,data=a']],
};

/** What stands in for FILE and the like in the operands, of the right number; for each command some choices. */
const OPERANDS: Readonly<Record<string, readonly (readonly string[])[]>> = {
  amend: [['base'], ['top'], ['snap'], ['v2'], ['raw']],
  bench: [['base'], ['raw'], ['top']],
  bitmap: [
    ['marked', 'b0'],
    ['marked', 'b1'],
    ['marked', 'b9'],
    ['base', 'b0'],
    ['raw', 'b0'],
    ['v2', 'b0'],
  ],
  check: [['base'], ['leaky'], ['corrupt'], ['raw'], ['marked'], ['snap']],
  commit: [['top'], ['base'], ['high'], ['raw']],
  compare: [
    ['base', 'top'],
    ['base', 'base'],
    ['raw', 'odd'],
    ['base', 'copy'],
    ['raw', 'base'],
    ['snap', 'base'],
  ],
  convert: [
    ['base', 'out'],
    ['top', 'out'],
    ['raw', 'out'],
    ['odd', 'out'],
    ['base', 'raw', 'out'],
    ['snap', 'other'],
    ['marked', 'out'],
  ],
  create: [
    ['new', '1M'],
    ['new', '64k'],
    ['new'],
    ['base', '2M'],
    ['new', 'x'],
    ['new', '1M', 'x'],
    ['nope/new', '1M'],
  ],
  dd: [
    ['if=raw', 'of=out'],
    ['if=base', 'of=out', 'bs=64k'],
    ['if=raw', 'of=out', 'count=3', 'skip=1'],
    ['if=odd', 'of=out', 'bs=1k', 'skip=200'],
    ['if=raw', 'of=out', 'bs=0'],
    ['if=raw'],
    ['of=out'],
    ['if=raw', 'of=out', 'foo=1'],
    ['if=raw', 'of=out', 'bs=x'],
  ],
  info: [['base'], ['top'], ['snap'], ['marked'], ['raw'], ['high']],
  map: [['base'], ['top'], ['raw'], ['high'], ['odd'], ['packed']],
  measure: [['base'], ['raw'], ['top'], ['marked'], []],
  rebase: [['top'], ['high'], ['base'], ['raw']],
  resize: [
    ['base', '2M'],
    ['base', '+64k'],
    ['top', '1M'],
    ['raw', '2M'],
    ['raw', '64k'],
    ['base', '-64k'],
    ['snap', '2M'],
    ['raw', 'x'],
    ['raw', '+-1'],
    ['raw', '0'],
  ],
  snapshot: [['snap'], ['base'], ['raw'], ['top']],
};
const WRONG_OPERANDS: readonly (readonly string[])[] = [[], ['nope'], ['base', 'raw', 'other', 'nope'], ['']];

/** Options that are always among the words, for lines that do more than fail. */
const USUAL: Readonly<Record<string, readonly (readonly string[])[]>> = {
  amend: [
    ['-o', 'compat=1.1'],
    ['-o', 'lazy_refcounts=on'],
    ['-o', 'compat=0.10'],
  ],
  bench: [
    ['-c', '8', '-d', '2'],
    ['-c', '20'],
    ['-w', '-c', '4', '-S', '64k'],
  ],
  bitmap: [
    ['--add'],
    ['--clear'],
    ['--remove'],
    ['--disable'],
    ['--merge', 'b1'],
    ['--add', '--merge', 'b0'],
  ],
  create: [
    ['-f', 'qcow2'],
    ['-f', 'raw'],
    ['-f', 'qcow2', '-b', 'base', '-F', 'qcow2'],
  ],
  convert: [
    ['-O', 'qcow2'],
    ['-O', 'raw'],
    ['-O', 'qcow2', '-c'],
    ['-n', '-O', 'qcow2'],
    ['--bitmaps', '-O', 'qcow2'],
  ],
  measure: [
    ['-O', 'qcow2'],
    ['-O', 'raw'],
    ['--size', '1M'],
  ],
  rebase: [
    ['-b', 'other', '-F', 'qcow2'],
    ['-b', '', '-q'],
    ['-u', '-b', 'base', '-F', 'qcow2'],
    ['-b', 'base', '-F', 'qcow2'],
  ],
  snapshot: [['-l'], ['-c', 'n1'], ['-a', 's1'], ['-d', 's2'], []],
  resize: [[], ['--shrink'], ['-f', 'raw'], ['-f', 'qcow2']],
};

/** Ours, or of newer releases: the original has neither the name nor the letter. */
function isOurs(command: string, name: string, option: OptionDefinition): boolean {
  return (
    (command === 'bench' && name === 'object') ||
    ['help', 'untrusted', 'errorFormat'].includes(name) ||
    (option.newer === true && option.short === undefined) ||
    option.newerLetter === true
  );
}

/** The options that the original has, by our names for them. */
export function knownOptions(table: CommandTable): readonly (readonly [string, OptionDefinition])[] {
  return Object.entries(table.options).filter(([name, option]) => !isOurs(table.name, name, option));
}

function pick<T>(random: Random, list: readonly T[]): T {
  return list[random.below(list.length)]!;
}

/** An option as words: by letter or name, its argument apart or attached, good most of the time. */
export function optionWords(random: Random, option: OptionDefinition): string[] {
  const { short, long, argument, newer } = option;
  const byName = long !== undefined && newer !== true && (short === undefined || random.below(2) === 0);
  const name = byName ? `--${long}` : `-${short}`;
  if (!argument) return [name];
  const [good, bad] =
    option.choices === undefined
      ? (VALUES[option.value ?? ''] ?? [['x'], ['']])
      : [option.choices, ['nope', '']];
  const value = pick(random, random.below(4) === 0 ? bad : good);
  if (random.below(3) > 0) return [name, value];
  return [byName ? `${name}=${value}` : `${name}${value}`];
}

/** Words in any order: that of options matters to none but the last of a kind. */
function shuffled(random: Random, groups: string[][]): string[][] {
  for (let at = groups.length - 1; at > 0; at--) {
    const other = random.below(at + 1);
    [groups[at], groups[other]] = [groups[other]!, groups[at]!];
  }
  return groups;
}

/** A command line with the options `wanted` in it. */
export function commandLine(
  random: Random,
  table: CommandTable,
  wanted: readonly OptionDefinition[],
): readonly string[] {
  const { name } = table;
  const known = knownOptions(table);
  const groups: string[][] = [];
  const usual = USUAL[name];
  if (usual !== undefined && random.below(8) > 0) groups.push([...random.pick(usual)]);
  for (const option of wanted) groups.push(optionWords(random, option));
  for (let more = random.below(3) - wanted.length; more > 0; more--)
    groups.push(optionWords(random, random.pick(known)[1]));
  // What the original does not know makes its measure print help, and succeed.
  if (name !== 'measure' && random.below(25) === 0)
    groups.push([random.pick(['--nope', '-Z', '--out=x', '-', '-qq', '--'])]);
  const operands = pick(random, random.below(10) === 0 ? WRONG_OPERANDS : (OPERANDS[name] ?? [['base']]));
  return [name, ...shuffled(random, groups).flat(), ...operands];
}
