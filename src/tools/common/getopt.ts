/**
 * Reading a command line by the rules of getopt_long(3), as the GNU C library has it: options and operands in any
 * order, "--" ends the options, long options may be shortened while they stay unambiguous, short ones run together.
 *
 * Options come one by one, in order, so that a tool can complain about an option's value before it looks at the next.
 * What an option does, and in which words its tool complains, is the tool's matter.
 */

export interface OptionDefinition {
  /** The name behind "--". */
  readonly long?: string;
  /** The letter behind "-". */
  readonly short?: string;
  /** The option has an argument, which is then required. */
  readonly argument: boolean;
  /** Values that an option without an argument may have all the same, behind "=": "-p=json", "--progress=json". */
  readonly attached?: readonly string[];
  /**
   * qemu's tools of 7.2 do not have the long name: an abbreviation that fits one of theirs means that, and never this.
   */
  readonly newer?: true;
  /** They do not have the letter either. */
  readonly newerLetter?: true;
  /** What help calls the argument. FILE, FORMAT, CACHE, SIZE, ... also tell a completion what to offer. */
  readonly value?: string;
  /** The words that the argument may be, where there are few. */
  readonly choices?: readonly string[];
  /** What the option does, in one or two lines of help. */
  readonly help?: string;
  /** Heading under which this option and those behind it are shown in help. */
  readonly section?: string;
}

/** The options of a command; the order is that in which ambiguous ones are listed. */
export type OptionTable = Readonly<Record<string, OptionDefinition>>;

export type GetoptItem<Name extends string = string> =
  /** `value` is '' for options without an argument. */
  { readonly kind: 'option'; readonly name: Name; readonly value: string } | GetoptError;

/** An option that cannot be read. Reading may go on after it. */
export interface GetoptError {
  readonly kind: 'error';
  readonly problem: 'unrecognized' | 'missing-argument';
  /** The C library's own message, without the program's name in front. */
  readonly message: string;
  /** What a C program finds in argv[optind - 1] then: the word, or in the middle of run-together letters the one before. */
  readonly word: string;
}

export interface Getopt<Name extends string = string> {
  /** The next option; null behind the last. */
  next(): GetoptItem<Name> | null;
  /** The words that are no options, in order; complete when next() has returned null. */
  readonly operands: readonly string[];
}

export interface GetoptSettings {
  /** What argv[0] is, for messages. */
  readonly program: string;
  /** Options end at the first operand (a "+" in front of the C function's option letters). */
  readonly stopAtOperand?: boolean;
}

/** Reads `words` (without argv[0]). */
export function createGetopt<T extends OptionTable>(
  words: readonly string[],
  table: T,
  { program, stopAtOperand = false }: GetoptSettings,
): Getopt<keyof T & string> {
  const definitions = Object.entries(table) as [keyof T & string, OptionDefinition][];
  const operands: string[] = [];
  let at = 0;
  /** Letters of a run-together word still to be read. */
  let letters = '';
  let ended = false;
  let before = program;

  type Item = GetoptItem<keyof T & string>;

  function error(problem: GetoptError['problem'], message: string, word: string): GetoptError {
    return { kind: 'error', problem, message, word };
  }

  function unrecognized(message: string, word: string): GetoptError {
    return error('unrecognized', message, word);
  }

  function readLetter(): Item {
    const word = words[at]!;
    const letter = letters[0]!;
    letters = letters.slice(1);
    // Operands met so far stand between the options read and this word.
    const previous = operands.at(-1) ?? before;
    const found = definitions.find(([, { short }]) => short === letter);
    const isLast = letters === '';
    const advance = (): void => {
      at++;
      before = words[at - 1]!;
      letters = '';
    };
    if (found === undefined) {
      if (isLast) advance();
      return unrecognized(`invalid option -- '${letter}'`, isLast ? word : previous);
    }
    const [name, { argument, attached }] = found;
    if (!argument) {
      if (letters.startsWith('=') && attached?.includes(letters.slice(1)) === true) {
        const value = letters.slice(1);
        advance();
        return { kind: 'option', name, value };
      }
      if (isLast) advance();
      return { kind: 'option', name, value: '' };
    }
    let value = letters;
    advance();
    if (isLast) {
      if (at >= words.length)
        return error('missing-argument', `option requires an argument -- '${letter}'`, word);
      value = words[at]!;
      advance();
    }
    return { kind: 'option', name, value };
  }

  function findLong(given: string): [keyof T & string, OptionDefinition][] {
    const exact = definitions.filter(([, { long }]) => long === given);
    if (exact.length > 0) return exact;
    const begun = definitions.filter(([, { long }]) => long?.startsWith(given) === true);
    const older = begun.filter(([, { newer }]) => newer !== true);
    return older.length > 0 ? older : begun;
  }

  function readLong(word: string): Item {
    at++;
    before = word;
    const equals = word.indexOf('=');
    const given = word.slice(2, equals < 0 ? undefined : equals);
    const candidates = findLong(given);
    const [first] = candidates;
    if (first === undefined) return unrecognized(`unrecognized option '--${given}'`, word);
    if (candidates.length > 1) {
      const list = candidates.map(([, { long }]) => `'--${long}'`).join(' ');
      return unrecognized(`option '--${given}' is ambiguous; possibilities: ${list}`, word);
    }
    const [name, { long, argument, attached }] = first;
    if (!argument) {
      const value = word.slice(equals + 1);
      if (equals >= 0 && attached?.includes(value) === true) return { kind: 'option', name, value };
      if (equals >= 0) return unrecognized(`option '--${long}' doesn't allow an argument`, word);
      return { kind: 'option', name, value: '' };
    }
    if (equals >= 0) return { kind: 'option', name, value: word.slice(equals + 1) };
    if (at >= words.length) return error('missing-argument', `option '--${long}' requires an argument`, word);
    before = words[at]!;
    at++;
    return { kind: 'option', name, value: before };
  }

  return {
    operands,
    next() {
      if (letters !== '') return readLetter();
      while (at < words.length) {
        const word = words[at]!;
        if (!ended && word === '--') {
          ended = true;
          at++;
          continue;
        }
        if (ended || word === '-' || !word.startsWith('-')) {
          if (stopAtOperand) ended = true;
          operands.push(word);
          at++;
          continue;
        }
        if (word.startsWith('--')) return readLong(word);
        letters = word.slice(1);
        return readLetter();
      }
      return null;
    },
  };
}
