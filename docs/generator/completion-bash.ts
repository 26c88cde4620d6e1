/** Completions for bash: the tables as functions, then what works on them (engine.bash). */

import type { Format, Key, KeyedOption } from './choices.ts';
import { type Command, type Option, type Program, takesFiles, type ValueKind } from './programs.ts';

/** What the completions of a program draw from beside its tables. */
export interface Choices {
  readonly formats: readonly Format[];
  readonly keyed: Readonly<Record<string, KeyedOption>>;
}

const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;

function namesOf({ short, long, attached }: Option): string[] {
  const names = [...(short === undefined ? [] : [`-${short}`]), ...(long === undefined ? [] : [`--${long}`])];
  return [...names, ...attached.map((value) => `${names.at(-1)}=${value}`)];
}

function kindText(kind: ValueKind): string {
  if (typeof kind === 'string') return `kind=${kind}`;
  if ('daemonOption' in kind) return `kind=keyed:${kind.daemonOption}`;
  return `kind=words choices=${quoted(kind.join(' '))}`;
}

/** A case of the options that have an argument. Equal ones stand together. */
function valueCases(commands: readonly Command[], root: Command): string {
  const patterns = new Map<string, string[]>();
  for (const command of [root, ...commands]) {
    for (const option of command.options) {
      if (option.values.length === 0) continue;
      const body = kindText(option.kind);
      const owner = command === root ? '' : command.name;
      const own = namesOf(option).map((name) => `${owner}:${name}`);
      patterns.set(body, [...(patterns.get(body) ?? []), ...own]);
    }
  }
  return [...patterns].map(([body, names]) => `    ${names.join(' | ')}) ${body} ;;\n`).join('');
}

/** A function whose answer depends on its arguments: `entries` are patterns and words. */
function caseFunction(
  name: string,
  subject: string,
  entries: readonly (readonly [string, string])[],
): string {
  const cases = entries.map(([pattern, words]) => `    ${pattern}) echo ${quoted(words)} ;;\n`).join('');
  return `${name}() {\n  case ${subject} in\n${cases}    *) ;;\n  esac\n}\n`;
}

function keyNames(keys: readonly Key[]): string {
  return [...new Set(keys.map(({ name }) => name))].join(' ');
}

/** Every key with few values: keys of one name are taken together. */
function choicesByKey(keys: readonly Key[]): (readonly [string, string])[] {
  const all = new Map<string, Set<string>>();
  for (const { name, choices } of keys) {
    if (choices.length === 0) continue;
    const known = all.get(name) ?? new Set();
    for (const choice of choices) known.add(choice);
    all.set(name, known);
  }
  const byWords = new Map<string, string[]>();
  for (const [name, words] of all) {
    const text = [...words].join(' ');
    byWords.set(text, [...(byWords.get(text) ?? []), name]);
  }
  return [...byWords].map(([words, names]) => [names.join(' | '), words]);
}

function usedKinds(program: Program): { readonly formats: boolean; readonly keyed: readonly string[] } {
  const kinds = [program, ...program.commands].flatMap(({ options }) => options.map(({ kind }) => kind));
  const keyed = kinds.flatMap((kind) =>
    typeof kind === 'object' && 'daemonOption' in kind ? [kind.daemonOption] : [],
  );
  return {
    formats: kinds.some((kind) => kind === 'format' || kind === 'format-options'),
    keyed: [...new Set(keyed)],
  };
}

/** The completion file of a program. `engine`: engine.bash. */
export function bashCompletion(program: Program, { formats, keyed }: Choices, engine: string): string {
  const id = program.name.replaceAll('-', '_');
  const used = usedKinds(program);
  const keyedHere = used.keyed.map((name) => [name, keyed[name]!] as const);
  const keys = [
    ...keyedHere.flatMap(([, { values, keys: own }]) => [...own, ...values.flatMap((value) => value.keys)]),
    ...(used.formats ? formats.flatMap(({ options }) => options) : []),
  ];
  const tags: (readonly [string, string])[] = [
    ...(used.formats ? [['format', formats.map(({ name }) => name).join(' ')] as const] : []),
    ...keyedHere.map(([name, { values }]) => [name, values.map((value) => value.name).join(' ')] as const),
  ];
  const keyCases: (readonly [string, string])[] = [
    ...(used.formats
      ? formats
          .filter(({ options }) => options.length > 0)
          .map(({ name, options }) => [`format:${name}`, keyNames(options)] as const)
      : []),
    ...keyedHere.flatMap(([name, { values, keys: own }]) => [
      ...values
        .filter((value) => value.keys.length > 0)
        .map((value) => [`${name}:${value.name}`, keyNames([...value.keys, ...own])] as const),
      [`${name}:*`, keyNames(own)] as const,
    ]),
  ];
  const optionCases = [program, ...program.commands].map((command) => {
    const words = command.options.flatMap(namesOf).join(' ');
    return [command === program ? "''" : command.name, words] as const;
  });
  const commandNames = program.commands.map(({ name }) => name).join(' ');
  return [
    `# Completion of ${program.name} for bash. Made from the tables that --help prints; do not edit.\n`,
    `# What the argument of an option is: $1 is the command, $2 the option.\n_${id}_value() {\n  case $1:$2 in\n${valueCases(program.commands, program)}    *) return 1 ;;\n  esac\n}\n`,
    caseFunction(`_${id}_options`, '"$1"', optionCases),
    `_${id}_commands() {\n  echo ${quoted(commandNames)}\n}\n`,
    `# Formats, drivers and types: $1 is what kind.\n${caseFunction(`_${id}_tags`, '"$1"', tags)}`,
    `# Keys: $1 is what kind, $2 the format, driver or type.\n${caseFunction(`_${id}_keys`, '"$1:$2"', keyCases)}`,
    caseFunction(`_${id}_choices`, '"$1"', choicesByKey(keys)),
    engine
      .replaceAll('@P@', id)
      .replaceAll('@NAME@', program.name)
      .replaceAll('@OPERANDS@', program.commands.length > 0 || takesFiles(program) ? '1' : '0')
      .replaceAll('@COMMANDS@', program.commands.length > 0 ? '1' : '0'),
  ].join('\n');
}
