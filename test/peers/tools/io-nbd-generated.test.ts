/**
 * qblock-io and qblock-nbd beside the originals on generated command lines, valid and not: every option of the programs and
 * every command of qemu-io with its options. TOOL_LINES=N, TOOL_SEED=N. Servers at work are nbd-tool.test.ts's.
 */

import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { OptionDefinition } from '../../../src/tools/common/getopt.ts';
import { COMMANDS, type IoCommand } from '../../../src/tools/io/commands.ts';
import { PROGRAM as IO } from '../../../src/tools/io/table.ts';
import { PROGRAM as NBD } from '../../../src/tools/nbd/table.ts';
import { createRandom, type Random } from '../../drivers/qcow2/random.ts';
import { repositoryRoot } from '../daemons.ts';
import { withoutHolders } from '../newer-members.ts';
import { missingPeer, requirePeer } from '../requires.ts';
import { knownOptions, optionWords } from './generated.ts';
import { differences, linkAs } from './side-by-side.ts';

const LINES = Number(process.env.TOOL_LINES ?? '2');
const SEED = Number(process.env.TOOL_SEED ?? '1');

let root = '';
const ours: Record<string, string> = {};
const fixture = (): string => path.join(root, 'fixture');

beforeAll(() => {
  root = mkdtempSync(path.join(tmpdir(), 'qb-gen-'));
  if (missingPeer(['qemu-img', 'qemu-io', 'qemu-nbd']) !== null) return;
  mkdirSync(fixture());
  for (const name of ['io', 'nbd'])
    ours[name] = linkAs(`qemu-${name}`, path.join(repositoryRoot, `daemon/bin/qblock-${name}`), root);
  const img = (...words: string[]) => execFileSync('qemu-img', words, { cwd: fixture(), stdio: 'pipe' });
  writeFileSync(path.join(fixture(), 'raw'), Buffer.alloc(256 * 1024, 3));
  writeFileSync(path.join(fixture(), 'pattern'), 'twelve bytes');
  img('create', '-q', '-f', 'qcow2', 'base', '1M');
  execFileSync('qemu-io', ['-c', 'write -P 7 64k 100k', 'base'], { cwd: fixture(), stdio: 'pipe' });
  img('create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'qcow2', 'top');
  execFileSync('qemu-io', ['-c', 'write -P 8 0 64k', '-c', 'write -z 512k 64k', 'top'], {
    cwd: fixture(),
    stdio: 'pipe',
  });
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** Times and rates are each tool's own; who holds a lock only we tell. */
const normalise = (text: string): string =>
  withoutHolders(text)
    .replace(/ops; .*/g, 'ops; TIME')
    .replace(/^(\d+,\d+),[\d.,:]+$/gm, '$1,FIGURES')
    .replace(/#block\d+/g, '#block');

const OPERAND_VALUES: Readonly<Record<string, readonly string[]>> = {
  off: ['0', '64k', '128k', '512', '3', '1M', '2M', '0x1000', '-1', 'x', '9E', '1.5k'],
  offset: ['0', '64k', '1000', '2M', 'x'],
  len: ['512', '4k', '64k', '0', '3', '200k', '-1', 'x', '3G'],
  count: ['512', '1', '64k', 'x'],
  pattern: ['0', '7', '255', '0xcd', '256', 'x', '-1'],
  source_file: ['pattern', 'nope'],
  prealloc_mode: ['off', 'metadata', 'falloc', 'full', 'nope'],
  cache: ['none', 'writeback', 'unsafe', 'nope'],
  options: ['discard=off', 'read-only=on', 'read-only=x', 'foo=1', 'detect-zeroes=on', 'l2-cache-size=1M'],
};

/** What is not to be drawn: it waits, ends the process, speaks of ourselves, or needs more than an image. */
const LEFT_OUT: readonly string[] = [
  ...['abort', 'break', 'help', 'open', 'quit', 'remove_break', 'resume', 'sigraise', 'sleep', 'wait_break'],
];

/** A line of the command: flags, options with values and operands as its own help has them. */
function ioLine(random: Random, { name, words }: IoCommand): string {
  const parts: string[] = [];
  for (const [, letters = ''] of words.matchAll(/\[-([A-Za-z]+)\]/g))
    for (const letter of letters) if (random.below(4) === 0) parts.push(`-${letter}`);
  for (const [, letter = '', value = ''] of words.matchAll(/-([A-Za-z]) (\w+)/g))
    if (random.below(3) === 0)
      parts.push(`-${letter} ${random.pick(OPERAND_VALUES[value] ?? OPERAND_VALUES.off!)}`);
  if (name === 'reopen' && random.below(3) === 0) parts.push(random.pick(['-r', '-w']));
  if (random.below(20) === 0) parts.push('-Z');
  const operands = words.replace(/\[-.*\] ?(?=off|\[?count|$)|-[A-Za-z] \w+/g, '').match(/\w+/g) ?? [];
  for (const operand of operands) {
    const values = OPERAND_VALUES[operand];
    if (values !== undefined && random.below(12) > 0) parts.push(random.pick(values));
  }
  return [name, ...parts].join(' ');
}

/** Options in pairs, so that each is in a line. */
function inPairs<T>(list: readonly T[]): (readonly T[])[] {
  return list.flatMap((_one, index) => (index % 2 === 0 ? [list.slice(index, index + 2)] : []));
}

async function expectSame(tool: 'io' | 'nbd', lines: readonly (readonly string[])[]): Promise<void> {
  const pair = { theirs: `qemu-${tool}`, ours: ours[tool]!, normalise };
  const found: string[] = [];
  for (const line of lines)
    found.push(...(await differences(pair, line, fixture(), path.join(root, `run-${tool}`))));
  expect(found.join('\n====\n')).toBe('');
}

test.concurrent('qemu-io', async (context) => {
  requirePeer(context, 'qemu-img', 'qemu-io');
  const random = createRandom(SEED * 77);
  const commands = COMMANDS.filter(({ name }) => !LEFT_OUT.includes(name));
  const options = knownOptions(IO)
    .filter(([name]) => !['version', 'cmd', 'trace'].includes(name))
    .map(([, option]) => option);
  const wanted: (readonly OptionDefinition[])[] = inPairs(options);
  const lines: string[][] = [];
  const draw = (command: IoCommand): string[] => ['-c', ioLine(random, command)];
  for (const [index, command] of commands.concat(LINES > 2 ? commands : []).entries()) {
    const more = [command, random.pick(commands), command].flatMap(draw);
    const image = random.pick([['base'], ['-f', 'raw', 'raw'], ['top'], ['-f', 'qcow2', 'top']]);
    const chosen = index < wanted.length ? wanted[index]! : [];
    lines.push([...chosen.flatMap((option) => optionWords(random, option)), ...more, ...image]);
  }
  for (let more = 0; more < LINES; more++)
    lines.push([
      ...Array.from({ length: 4 }, () => draw(random.pick(commands))).flat(),
      random.pick(['base', 'top']),
    ]);
  await expectSame('io', lines);
});

test.concurrent('qemu-nbd', async (context) => {
  requirePeer(context, 'qemu-nbd');
  const random = createRandom(SEED * 99);
  const options = knownOptions(NBD)
    .filter(
      ([name]) =>
        ![
          'version',
          'trace',
          'connect',
          'disconnect',
          'selinuxLabel',
          'list',
          'bind',
          'port',
          'socket',
        ].includes(name),
    )
    .map(([, option]) => option);
  // Nothing is served: there is no such file.
  const lines = [...inPairs(options), ...inPairs([...options].reverse())].map((chosen) => [
    // The original listens before it looks: not where other tests do.
    ...['-p', '10987'],
    ...chosen.flatMap((option) => optionWords(random, option)),
    ...random.pick([['nope'], ['nope'], ['nope'], [], ['nope', 'base']]),
  ]);
  await expectSame('nbd', lines);
});
