/**
 * What the sub-commands have in common: how they read their options, and how they end.
 *
 * A command returns its exit status. It throws UsageError for a command line that cannot be meant, EarlyExit when
 * something was printed instead of done, and any other error for a failure (exit status 1).
 */

import { BlockError } from '../../../errors/error.ts';
import { type CommandTable, commandHelp } from '../../common/command-table.ts';
import { addObject, type CacheMode, cacheMode, type ToolEnvironment } from '../../common/environment.ts';
import { createGetopt, type OptionTable } from '../../common/getopt.ts';
import { setErrorFormat, type ToolOutput } from '../../common/output.ts';
import { type ParsedSize, parseSize } from '../../common/size.ts';

export interface CommandContext {
  readonly output: ToolOutput;
  /** The environment, made at first use: a command line that is wrong needs none. */
  environment(): ToolEnvironment;
}

export type ImgCommand = (context: CommandContext, words: readonly string[]) => Promise<number>;

/** The command line is wrong; the message is followed by where to find help. */
export class UsageError extends Error {}

/** The command ends here with this status; everything has been said. */
export class EarlyExit {
  readonly status: number;

  constructor(status: number) {
    this.status = status;
  }
}

/** Options of every command, which are dealt with here. */
type Common = 'help' | 'object' | 'untrusted' | 'errorFormat';

/** Reads a command's options; `take` is called for each of its own, in order. Returns the operands. */
export async function readOptions<T extends OptionTable>(
  context: CommandContext,
  table: CommandTable<T>,
  words: readonly string[],
  take: (name: Exclude<keyof T & string, Common>, value: string) => void,
): Promise<readonly string[]> {
  const { output } = context;
  const getopt = createGetopt(words, table.options, { program: table.name });
  for (;;) {
    const item = getopt.next();
    if (item === null) return getopt.operands;
    if (item.kind === 'error') throw optionError(item.problem, item.word);
    if (item.name === 'help') {
      output.print(commandHelp(`${output.program} ${table.name}`, table));
      throw new EarlyExit(0);
    } else if (item.name === 'untrusted') {
      context.environment().untrusted = true;
    } else if (item.name === 'errorFormat') {
      setErrorFormat(output, item.value);
    } else if (item.name === 'object') {
      if (await addObject(context.environment(), item.value)) throw new EarlyExit(0);
    } else {
      take(item.name as Exclude<keyof T & string, Common>, item.value);
    }
  }
}

export function optionError(problem: 'unrecognized' | 'missing-argument', word: string): UsageError {
  return new UsageError(
    problem === 'unrecognized' ? `unrecognized option '${word}'` : `missing argument for option '${word}'`,
  );
}

// ---- values --------------------------------------------------------------------------------------------------

export type OutputFormat = 'human' | 'json';

export function outputFormat(value: string): OutputFormat {
  if (value === 'human' || value === 'json') return value;
  throw new BlockError('--output must be used with human or json as argument.');
}

export function checkFormatGiven(imageOpts: boolean, format: string | null): void {
  if (imageOpts && format !== null) throw new BlockError('--image-opts and --format are mutually exclusive');
}

/** A cache mode of the target; throws when there is none of that name. */
export function targetCache(name: string): CacheMode {
  const mode = cacheMode(name);
  if (mode === null) throw new BlockError(`Invalid cache option: ${name}`);
  return mode;
}

export function sourceCache(name: string): CacheMode {
  const mode = cacheMode(name);
  if (mode === null) throw new BlockError(`Invalid source cache option: ${name}`);
  return mode;
}

const INT64_MAX = 2n ** 63n - 1n;

/** A number of bytes. `what` names it in the error; numbers above 2^53 are rounded. */
export function readSize(output: ToolOutput, what: string, text: string, max = INT64_MAX): number {
  const size = parseSize(text);
  if (size.kind === 'size' && size.warning !== undefined) output.warn(size.warning);
  if (size.kind === 'size' && size.bytes <= max) return Number(size.bytes);
  throw sizeError(output, what, size, max);
}

/** The error of two lines goes out here but for its last line. */
function sizeError(output: ToolOutput, what: string, size: ParsedSize, max: bigint): BlockError {
  if (size.kind !== 'invalid')
    return new BlockError(`Invalid ${what} specified. Must be between 0 and ${max}.`);
  output.error(`Invalid ${what} specified. You may use k, M, G, T, P or E suffixes for`);
  return new BlockError('kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.');
}

/** Joins the values of an option that may be given several times; what is no list at all is refused. */
export function joinOptions(before: string | null, value: string): string {
  // An empty list, or one that begins or ends with a comma of its own, would run into the next.
  if (value === '' || value.startsWith(',') || /(?:^|[^,])(?:,,)*,$/.test(value))
    throw new BlockError(`Invalid option list: ${value}`);
  return before === null ? value : `${before},${value}`;
}
