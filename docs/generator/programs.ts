/**
 * The programs as man pages and completions need them: the tables that `--help` prints, in one shape, and what those
 * pages say beside the options (text.ts).
 */

import { ENVIRONMENT, EXIT_STATUSES } from '../../daemon/help.ts';
import { OPTIONS as DAEMON_OPTIONS } from '../../daemon/options.ts';
import { type CommandTable, exitStatuses } from '../../src/tools/common/command-table.ts';
import type { OptionDefinition } from '../../src/tools/common/getopt.ts';
import { TABLES } from '../../src/tools/img/tables/all.ts';
import { STANDARD_OPTIONS } from '../../src/tools/img/tables/shared.ts';
import { COMMANDS as IO_COMMANDS } from '../../src/tools/io/commands.ts';
import { PROGRAM as IO } from '../../src/tools/io/table.ts';
import { PROGRAM as NBD } from '../../src/tools/nbd/table.ts';
import { PROGRAM as SHELL } from '../../src/tools/shell/table.ts';
import { PAGES } from './text.ts';

export type Term = readonly [word: string, text: string];

/** What shells offer for an argument. */
export type ValueKind =
  | 'none'
  | 'file'
  | 'directory'
  /** Formats of images. */
  | 'format'
  /** Options of the format that another option names. */
  | 'format-options'
  /** KEY=VALUE,... of the daemon's option of this name. */
  | { readonly daemonOption: string }
  | readonly string[];

export interface Option {
  readonly short?: string;
  readonly long?: string;
  /** Forms of the argument; none: the option has none. */
  readonly values: readonly string[];
  /** Values that may stand behind "=" of an option without an argument. */
  readonly attached: readonly string[];
  readonly text: string;
  /** Heading above it. */
  readonly section?: string;
  readonly kind: ValueKind;
}

export interface Command {
  readonly name: string;
  readonly summary: string;
  /** Command lines without the name. */
  readonly synopsis: readonly string[];
  readonly options: readonly Option[];
  /** Lines as help shows them. */
  readonly notes: string;
  readonly statuses: readonly Term[];
}

/** Whether its operands may be files. */
export function takesFiles({ synopsis }: Command): boolean {
  return synopsis.some((form) => /FILE|TARGET|ADDRESS/.test(form));
}

export interface Program extends Command {
  readonly commands: readonly Command[];
  /** Paragraphs. */
  readonly description: readonly string[];
  readonly environment: readonly Term[];
  readonly files: readonly Term[];
  /** Command lines and what they do. */
  readonly examples: readonly Term[];
  readonly seeAlso: readonly string[];
  /** Things that are typed to the program. */
  readonly typed: readonly { readonly synopsis: string; readonly text: string }[];
}

const KINDS: Readonly<Record<string, ValueKind>> = {
  FILE: 'file',
  PATH: 'file',
  DEVICE: 'file',
  FORMAT: 'format',
  OPTIONS: 'format-options',
  OBJECT: { daemonOption: 'object' },
};

function optionOf({
  short,
  long,
  argument,
  value = '',
  choices,
  help = '',
  attached = [],
  section,
}: OptionDefinition): Option {
  return {
    ...(short !== undefined && { short }),
    ...(long !== undefined && { long }),
    ...(section !== undefined && { section }),
    values: argument ? [value === '' ? 'VALUE' : value] : [],
    attached,
    text: choices === undefined ? help : `${help} (${choices.join(', ')})`,
    kind: choices ?? KINDS[value] ?? 'none',
  };
}

function commandOf(table: CommandTable): Command {
  return {
    name: table.name,
    summary: table.summary,
    synopsis: table.operands.split(' | ').map((form) => `[OPTION...] ${form}`),
    options: Object.values(table.options)
      .filter(({ help }) => help !== undefined)
      .map(optionOf),
    notes: table.notes ?? '',
    statuses: exitStatuses(table).map(([status, text]) => [String(status), text]),
  };
}

function programOf(command: Command, more: Partial<Program> = {}): Program {
  const page = PAGES[command.name];
  if (page === undefined) throw new Error(`docs/generator/text.ts says nothing of ${command.name}`);
  return { ...command, commands: [], typed: [], environment: [], files: [], ...page, ...more };
}

/** What addresses of QMP begin with. */
const ADDRESSES = ['unix:', 'tcp:', 'ws:', 'stdio', 'fd:', 'ws-fd:'];
const KEYED = ['blockdev', 'chardev', 'export', 'monitor', 'nbd-server', 'object'];

function daemonOption([name, option]: [
  string,
  (typeof DAEMON_OPTIONS)[keyof typeof DAEMON_OPTIONS],
]): Option {
  const { argument, forms, text } = option;
  const [form = ''] = forms;
  const words = /^[a-z_]+(\|[a-z_]+)+$/.test(form) ? form.split('|') : null;
  const kind = KEYED.includes(name) ? { daemonOption: name } : name === 'qmp' ? ADDRESSES : (words ?? 'none');
  return {
    ...('short' in option && { short: option.short }),
    long: name,
    values: argument ? forms : [],
    attached: [],
    text,
    kind: 'completes' in option ? option.completes : kind,
  };
}

const daemon: Command = {
  name: 'qblockd',
  summary: 'Block storage daemon that speaks QMP',
  synopsis: ['[OPTION...]'],
  options: Object.entries(DAEMON_OPTIONS).map(daemonOption),
  notes: '',
  statuses: EXIT_STATUSES,
};

const img: Command = {
  name: 'qblock-img',
  summary: 'Makes, converts, checks and describes disk images',
  synopsis: ['[STANDARD OPTION...] COMMAND [OPTION...]'],
  options: Object.values(STANDARD_OPTIONS).map(optionOf),
  notes: '',
  statuses: [
    ['0', 'done'],
    ['1', 'the command line is wrong, or the command failed; standard error says how'],
    ['other', 'see the command'],
  ],
};

/** Every program, the daemon first. */
export const PROGRAMS: readonly Program[] = [
  programOf(daemon, { environment: ENVIRONMENT }),
  programOf(img, { commands: TABLES.map(commandOf) }),
  programOf(commandOf(IO), {
    typed: IO_COMMANDS.map(({ name, short, words, oneLine, help = '' }) => ({
      synopsis: `${name}${short === undefined ? '' : `, ${short}`} ${words}`.trim(),
      text: `${oneLine}\n${help}`,
    })),
  }),
  programOf(commandOf(NBD)),
  programOf(commandOf(SHELL)),
];
