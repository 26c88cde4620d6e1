/**
 * A command of a tool as a table: the one source of what is parsed, of `--help`, of the manual pages and of the shells'
 * completions. The tables themselves are each tool's.
 */

import type { OptionDefinition, OptionTable } from './getopt.ts';

export interface CommandTable<T extends OptionTable = OptionTable> {
  readonly name: string;
  /** What the command does, in one sentence without a full stop. */
  readonly summary: string;
  /** The operands as help shows them: "FILE [SIZE]". */
  readonly operands: string;
  readonly options: T;
  /** More about it, in lines of help; each ends in a line feed. */
  readonly notes?: string;
  /** Exit statuses beside 0 (done) and 1 (failed), or with other meanings. */
  readonly exitStatus?: Readonly<Record<number, string>>;
}

/** Of every program. */
export const HELP = {
  short: 'h',
  long: 'help',
  argument: false,
  help: 'print this help and exit',
} as const satisfies OptionDefinition;
export const VERSION = {
  short: 'V',
  long: 'version',
  argument: false,
  help: 'print the version and exit',
} as const satisfies OptionDefinition;
/** Of the tools that the original traces. */
export const TRACE = {
  short: 'T',
  long: 'trace',
  argument: true,
  value: 'SPEC',
  help: 'taken and without effect: there are no trace events',
} as const satisfies OptionDefinition;
/** Of every tool and command. */
export const ERROR_FORMAT = {
  long: 'error-format',
  argument: true,
  newer: true,
  value: 'FORMAT',
  choices: ['human', 'json'],
  help: 'how errors are printed: as text (human), or as a line of JSON each',
} as const satisfies OptionDefinition;

export const DONE = 'done';
const FAILED = 'the command line is wrong, or the command failed; standard error says how';

/** What a command's exit statuses mean, in order. */
export function exitStatuses({ exitStatus = {} }: CommandTable): readonly (readonly [number, string])[] {
  const all: Readonly<Record<number, string>> = { 0: DONE, 1: FAILED, ...exitStatus };
  return Object.entries(all).map(([status, meaning]) => [Number(status), meaning] as const);
}

/** Column in which help says what an option does. */
const TEXT_COLUMN = 30;
const WIDTH = 80;

/** The options of a table as lines of help. */
export function optionLines(options: OptionTable): string {
  return Object.values(options).map(optionText).join('');
}

/** "-f, --format=FORMAT". */
export function optionName({ short, long, value, attached }: OptionDefinition): string {
  const names = [short === undefined ? '' : `-${short}`, long === undefined ? '' : `--${long}`];
  const given = names.filter((name) => name !== '').join(', ');
  const indented = short === undefined ? `    ${given}` : given;
  if (attached !== undefined) return `${indented}[=${attached.join('|')}]`;
  if (value === undefined) return indented;
  return long === undefined ? `${indented} ${value}` : `${indented}=${value}`;
}

function optionText(option: OptionDefinition): string {
  const { section, help = '', choices } = option;
  const heading = section === undefined ? '' : `\n${section}:\n`;
  const words = choices === undefined ? help : `${help} (${choices.join(', ')})`;
  const name = `  ${optionName(option)}`;
  const [first = '', ...rest] = wrapped(words, WIDTH - TEXT_COLUMN);
  const indent = ' '.repeat(TEXT_COLUMN);
  const start =
    name.length < TEXT_COLUMN - 1 ? `${name.padEnd(TEXT_COLUMN)}${first}` : `${name}\n${indent}${first}`;
  return `${heading}${[start, ...rest.map((line) => indent + line)].join('\n')}\n`;
}

/** The text in lines of at most `width` characters. */
function wrapped(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width)
      lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

/** The help of one command of a program. `program`: what stands in front of the operands. */
export function commandHelp(program: string, table: CommandTable): string {
  const statuses = exitStatuses(table).map(
    ([status, meaning]) => `  ${String(status).padStart(2)}  ${meaning}\n`,
  );
  const notes = table.notes === undefined ? '' : `\n${table.notes}`;
  return (
    `Usage: ${program} [OPTION...] ${table.operands}\n${table.summary}.\n\n` +
    `${optionLines(table.options)}${notes}\nExit status:\n${statuses.join('')}`
  );
}
