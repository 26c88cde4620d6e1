/**
 * The options of the command line and how they are read: getopt_long(3)'s rules, so that what a script passes to the
 * original means the same here. Long options may be shortened as long as they stay unambiguous, may have one dash or
 * two, and take their argument after "=" or as the next word.
 *
 * Not here: what the options do (command-line.ts).
 */

/** Long options; `short`: the letter that means the same. */
export const OPTIONS = {
  blockdev: { argument: true },
  chardev: { argument: true },
  config: { argument: true },
  daemonize: { argument: false },
  embedded: { argument: true },
  engine: { argument: true },
  export: { argument: true },
  help: { argument: false, short: 'h' },
  'log-file': { argument: true },
  'log-level': { argument: true },
  metrics: { argument: true },
  monitor: { argument: true },
  'nbd-server': { argument: true },
  object: { argument: true },
  pidfile: { argument: true },
  qmp: { argument: true },
  restore: { argument: true },
  save: { argument: true },
  trace: { argument: true, short: 'T' },
  version: { argument: false, short: 'V' },
} as const satisfies Record<string, { argument: boolean; short?: string }>;

export type OptionName = keyof typeof OPTIONS;

/** A word of the command line, understood. `text` is how it was written: it begins the messages about it. */
export type CommandLineItem =
  | { readonly kind: 'option'; readonly name: OptionName; readonly value: string; readonly text: string }
  | { readonly kind: 'operand'; readonly text: string };

/** The command line cannot be read; the message has no program name yet. */
export class UsageError extends Error {}

interface Definition {
  readonly argument: boolean;
  readonly short?: string;
}

const definitions: readonly (readonly [OptionName, Definition])[] = Object.entries(OPTIONS) as [
  OptionName,
  Definition,
][];

/** The option that `given` names in full or by an unambiguous beginning; null: none. */
function findLong(given: string, dashes: string): OptionName | null {
  const exact = definitions.find(([name]) => name === given);
  if (exact !== undefined) return exact[0];
  const candidates = definitions.filter(([name]) => name.startsWith(given));
  if (candidates.length > 1) {
    const names = candidates.map(([name]) => `'--${name}'`).join(' ');
    throw new UsageError(`option '${dashes}${given}' is ambiguous; possibilities: ${names}`);
  }
  return candidates[0]?.[0] ?? null;
}

/** Reads the words after the program's name. After "--" nothing is read, as the original does. */
export function parseCommandLine(argv: readonly string[]): CommandLineItem[] {
  const items: CommandLineItem[] = [];
  for (let index = 0; index < argv.length && argv[index] !== '--'; index++) {
    const word = argv[index] ?? '';
    const next = argv[index + 1];
    const item = parseLong(word, next) ?? parseShort(word, next, items);
    items.push(item.item);
    if (item.usedNext) index++;
  }
  return items;
}

interface Parsed {
  readonly item: CommandLineItem;
  readonly usedNext: boolean;
}

function option(name: OptionName, value: string, text: string, usedNext = false): Parsed {
  return { item: { kind: 'option', name, value, text }, usedNext };
}

/** A long option; null when the word is none, or has one dash and is no long option. */
function parseLong(word: string, next: string | undefined): Parsed | null {
  const match = /^(--?)([^=-][^=]*)(=([\s\S]*))?$/.exec(word);
  if (match === null) return null;
  const [, dashes = '', given = '', withValue, value = ''] = match;
  // With one dash a single letter is a short option.
  if (dashes === '-' && given.length === 1) return null;
  const name = findLong(given, dashes);
  if (name === null) {
    if (dashes === '-' && definitions.some(([, { short }]) => short === given[0])) return null;
    if (dashes === '-') throw new UsageError(`invalid option -- '${given[0]}'`);
    throw new UsageError(`unrecognized option '--${given}'`);
  }
  if (!OPTIONS[name].argument) {
    if (withValue === undefined) return option(name, '', word);
    throw new UsageError(`option '${dashes}${name}' doesn't allow an argument`);
  }
  if (withValue !== undefined) return option(name, value, word);
  if (next === undefined) throw new UsageError(`option '${dashes}${name}' requires an argument`);
  return option(name, next, `${word} ${next}`, true);
}

/** Short options, which may be run together ("-hV": the first goes to `items`), or an operand. */
function parseShort(word: string, next: string | undefined, items: CommandLineItem[]): Parsed {
  if (!word.startsWith('-') || word === '-')
    return { item: { kind: 'operand', text: word }, usedNext: false };
  const letter = word[1] ?? '';
  const found = definitions.find(([, { short }]) => short === letter);
  if (found === undefined) throw new UsageError(`invalid option -- '${letter}'`);
  const [name, { argument }] = found;
  const rest = word.slice(2);
  if (!argument) {
    if (rest === '') return option(name, '', word);
    items.push(option(name, '', word).item);
    return parseShort(`-${rest}`, next, items);
  }
  if (rest !== '') return option(name, rest, word);
  if (next === undefined) throw new UsageError(`option requires an argument -- '${letter}'`);
  return option(name, next, `${word} ${next}`, true);
}
