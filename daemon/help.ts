/** What `--help`, `--version` and the help of single options print. */

import { CHARDEV_BACKEND_KINDS } from '../src/chardev/table.ts';
import { QOM_TYPES, qomProperties } from '../src/objects/types.ts';
import { PACKAGE_VERSION, VERSION_INFO } from '../src/qmp/version.ts';
import { OPTIONS, type OptionName } from './options.ts';

/** Variables of the environment that the daemon reads. */
export const ENVIRONMENT = [
  ['QBLOCKD_LOG', 'level of the log when --log-level is not given'],
  ['QBLOCKD_ENGINE', 'engine when --engine is not given'],
  ['NO_COLOR', 'set: no colours in the log on a terminal'],
] as const;

export const EXIT_STATUSES = [
  ['0', 'a signal or quit has ended the daemon; help was asked for'],
  ['1', 'the command line is wrong, or what it asks for failed: standard error says what'],
] as const;

const WIDTH = 80;
const TEXT_COLUMN = 25;

/** Pieces in lines of `WIDTH`; those after the first begin with `indent` spaces. */
function filled(pieces: readonly string[], begun: number, indent: number): string {
  let text = '';
  let column = begun;
  for (const piece of pieces) {
    const tooLong = column + piece.trimEnd().length > WIDTH;
    if (text !== '' && tooLong) {
      text = `${text.trimEnd()}\n${' '.repeat(indent)}`;
      column = indent;
    }
    text += piece;
    column += piece.length;
  }
  return text.trimEnd();
}

/** A form of an option, broken in front of what may be left out. */
function formText(names: string, form: string): string {
  const indent = names.length + 3;
  return `  ${names} ${filled(form.split(/(?=\[,)|(?<=[^[],)(?=[^\]])/), indent, indent)}`.trimEnd();
}

function wordsText(text: string): string {
  return filled(text.split(/(?<= )/), TEXT_COLUMN, TEXT_COLUMN);
}

function optionText(name: OptionName): string {
  const { forms, text, ...option } = OPTIONS[name];
  const names = 'short' in option ? `-${option.short}, --${name}` : `--${name}`;
  const left = forms.map((form) => formText(names, form)).join('\n');
  const isShort = !left.includes('\n') && left.length < TEXT_COLUMN - 1;
  return `${isShort ? left.padEnd(TEXT_COLUMN) : `${left}\n${' '.repeat(TEXT_COLUMN)}`}${wordsText(text)}\n`;
}

function terms(list: readonly (readonly [string, string])[]): string {
  return list.map(([word, text]) => `  ${word.padEnd(TEXT_COLUMN - 2)}${wordsText(text)}\n`).join('');
}

/** The text of `--help`. */
export function usage(program: string): string {
  const options = (Object.keys(OPTIONS) as OptionName[]).map(optionText).join('\n');
  return `Usage: ${program} [options]
Block storage daemon that speaks QMP

${options}
Options are carried out in the order in which they stand. --blockdev, --export,
--object, --nbd-server and --monitor also take JSON; "help" in their place, or
behind a comma, lists what there is: --blockdev help, --blockdev qcow2,help.

Exit status:
${terms(EXIT_STATUSES)}
Environment:
${terms(ENVIRONMENT)}`;
}

/** The text of `--version`. */
export function versionText(program: string): string {
  const { major, minor, micro } = VERSION_INFO.qemu;
  return `${program} version ${PACKAGE_VERSION} (QMP of qemu-storage-daemon ${major}.${minor}.${micro})\n`;
}

/** The answer to `--chardev help`. */
export function chardevKinds(): string {
  return `Available chardev backend types: \n${CHARDEV_BACKEND_KINDS.map((kind) => `  ${kind}\n`).join('')}`;
}

/** The answer to `--object help`, and to `--object TYPE,help` for a known type. */
export function objectHelp(typeName: string | undefined): string {
  const type = typeName !== undefined && Object.hasOwn(QOM_TYPES, typeName) ? QOM_TYPES[typeName] : undefined;
  if (type?.userCreatable === true && typeName !== undefined) {
    // What cannot be set is not shown. Sorted as the lines are, which puts x-bps-max before x-bps.
    const settable = qomProperties(typeName).filter(([name]) => name !== 'type' && name !== 'loaded');
    const lines = settable.map(([name, kind]) => `  ${name}=<${kind}>\n`);
    return `${typeName} options:\n${lines.sort().join('')}`;
  }
  const names = Object.keys(QOM_TYPES).filter((name) => QOM_TYPES[name]?.userCreatable === true);
  return `List of user creatable objects:\n${names
    .sort()
    .map((name) => `  ${name}\n`)
    .join('')}`;
}
