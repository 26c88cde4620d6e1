/**
 * What `--blockdev help`, `--blockdev qcow2,help` and the help of other options print that are read by a type of the
 * schema: the members of the type, or the values of the member that chooses a branch.
 *
 * The original has no help for these options. Not here: help of --object and --chardev, which it has (help.ts).
 */

import { OPTION_TEXTS } from '../schema/generated/option-help.ts';
import { VISITOR_TYPES, type VisitorMember } from '../schema/generated/visitor-tables.ts';
import { BlockError } from '../src/errors/error.ts';

const TEXT_COLUMN = 34;
const WIDTH = 110;
/** Members of members are named down to here: options of nodes may hold options of nodes. */
const MAX_DEPTH = 3;
/** An enumeration longer than this is named, not listed. */
const MAX_VALUES_LENGTH = 40;

const TYPE_TEXTS: Readonly<Record<string, string>> = {
  str: 'string',
  bool: 'on|off',
  number: 'number',
  any: 'any',
  null: 'null',
};

function typeText(name: string): string {
  if (name.startsWith('[')) return typeText(name.slice(1, -1));
  const type = VISITOR_TYPES[name];
  if (type === undefined) return TYPE_TEXTS[name] ?? 'int';
  if (type.kind === 'enum') {
    const values = type.values.join('|');
    return values.length <= MAX_VALUES_LENGTH ? values : name;
  }
  if (type.kind === 'alternate') return name.startsWith('BlockdevRef') ? 'node' : 'value';
  return name;
}

/** An option as it is typed. */
export interface OptionLine {
  readonly name: string;
  readonly type: string;
  readonly text: string;
  /** Where it belongs to a branch: "MEMBER=VALUE" of each that has it. */
  readonly conditions: readonly string[];
  readonly required: boolean;
}

/** The members as options: those of objects with dots, those of unions with the values that make them apply. */
function linesOf(
  owner: string,
  members: readonly VisitorMember[],
  prefix: string,
  depth: number,
): OptionLine[] {
  return members.flatMap(([member, type, optional]) => {
    const isList = type.startsWith('[');
    const name = `${prefix}${member}${isList ? '.0' : ''}`;
    const text = OPTION_TEXTS[owner]?.[member] ?? '';
    const element = isList ? type.slice(1, -1) : type;
    const target = VISITOR_TYPES[element];
    if (target?.kind !== 'object' || depth >= MAX_DEPTH || element === 'BlockdevOptions')
      return [{ name, type: typeText(type), text, conditions: [], required: optional === 0 }];
    const lines = linesOf(element, target.members, `${name}.`, depth + 1);
    for (const [value, branch] of Object.entries(target.branches ?? {})) {
      const struct = branch === null ? undefined : VISITOR_TYPES[branch];
      if (branch === null || struct?.kind !== 'object') continue;
      const condition = `${name}.${target.tag}=${value}`;
      for (const line of linesOf(branch, struct.members, `${name}.`, depth + 1)) {
        const same = lines.findIndex((other) => other.name === line.name && other.text === line.text);
        if (same < 0) lines.push({ ...line, conditions: [condition] });
        else lines[same] = { ...line, conditions: [...(lines[same]?.conditions ?? []), condition] };
      }
    }
    // What a member that may be left out needs, need not be there either.
    return optional === 0 ? lines : lines.map((line) => ({ ...line, required: false }));
  });
}

function wrapped(text: string): string {
  const lines: string[] = [];
  for (const word of text.split(' ')) {
    const last = lines.at(-1);
    if (last !== undefined && TEXT_COLUMN + 2 + last.length + 1 + word.length <= WIDTH)
      lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.join(`\n${' '.repeat(TEXT_COLUMN + 2)}`);
}

function printed(lines: readonly (readonly [left: string, text: string])[]): string {
  return lines
    .map(([left, text]) => {
      const start = `  ${left}`;
      const gap =
        start.length > TEXT_COLUMN - 1 ? `${start}\n${' '.repeat(TEXT_COLUMN)}` : start.padEnd(TEXT_COLUMN);
      return text === '' ? `${start}\n` : `${gap}- ${wrapped(text)}\n`;
    })
    .join('');
}

function optionLines(title: string, lines: readonly OptionLine[]): string {
  const sorted = [...lines].sort((a, b) => (a.name < b.name ? -1 : 1));
  return `${title}\n${printed(
    sorted.map(({ name, type, text, conditions, required }) => [
      `${name}=<${type}>${required ? ' (required)' : ''}`,
      conditions.length === 0 ? text : `${text} (if ${conditions.join(' or ')})`,
    ]),
  )}`;
}

interface Options {
  /** Those that the value of the tag brings; none without one. */
  readonly own: readonly OptionLine[];
  /** Those that are always there. */
  readonly common: readonly OptionLine[];
}

/** The options that a type reads; `value` is that of its tag. */
export function optionsOf(typeName: string, value: string | null): Options {
  const type = VISITOR_TYPES[typeName];
  if (type?.kind !== 'object') throw new BlockError('Help is not available for this option');
  const { tag, branches = {}, members } = type;
  const common = linesOf(typeName, members, '', 0).filter(({ name }) => name !== tag);
  if (value === null) return { own: [], common };
  if (!Object.hasOwn(branches, value))
    throw new BlockError(`Parameter '${tag}' does not accept value '${value}'`);
  const branch = branches[value] ?? null;
  const struct = branch === null ? undefined : VISITOR_TYPES[branch];
  if (branch === null || struct?.kind !== 'object') return { own: [], common };
  return { own: linesOf(branch, struct.members, '', 0), common };
}

/** Help for an option of type `typeName`; `options` are the other parameters given. Ends in a line feed. */
export function optionHelp(typeName: string, options: Readonly<Record<string, unknown>>): string {
  const type = VISITOR_TYPES[typeName];
  if (type?.kind !== 'object' || type.tag === undefined)
    return optionLines('Options:', optionsOf(typeName, null).common);
  const { tag, branches = {}, members } = type;
  const value = options[tag];
  if (typeof value === 'string') {
    const { own, common } = optionsOf(typeName, value);
    return `${optionLines(`${value} options:`, own)}\n${optionLines('Options of all:', common)}`;
  }
  const texts = OPTION_TEXTS[members.find(([name]) => name === tag)?.[1] ?? ''] ?? {};
  return `Values of '${tag}' ('VALUE,help' lists the options of each):\n${printed(
    Object.keys(branches)
      .sort()
      .map((name) => [name, texts[name] ?? '']),
  )}`;
}
