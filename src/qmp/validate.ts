/**
 * Turns raw arguments into typed ones: of QMP commands, and of the command line's keyval and JSON forms.
 *
 * The ahead-of-time validators accept or reject; only what they reject, and what needs conversion, is walked by the
 * visitor, which words the error.
 */

import type {
  BlockdevOptions,
  BlockExportOptions,
  Commands,
  MonitorOptions,
  NbdServerOptions,
  ObjectOptions,
} from '../../schema/generated/types.ts';
import { VALIDATORS } from '../../schema/generated/validators.js';
import { COMMAND_ARGUMENTS } from '../../schema/generated/visitor-tables.ts';
import { createTurns } from '../aio/host/turns.ts';
import { BlockError } from '../errors/error.ts';
import { reportOrder } from '../errors/member-order.ts';
import { parseJsonText } from './json-parse.ts';
import { JsonError } from './json-string.ts';
import type { JsonObject, JsonValue } from './json-value.ts';
import { parseKeyval } from './keyval.ts';
import { visit } from './visitor.ts';

export type CommandName = keyof Commands;

/** Types that command line options take. */
export interface CommandLineTypes {
  BlockdevOptions: BlockdevOptions;
  BlockExportOptions: BlockExportOptions;
  MonitorOptions: MonitorOptions;
  NbdServerOptions: NbdServerOptions;
  ObjectOptions: ObjectOptions;
}

const NO_ARGUMENTS = Object.freeze(Object.create(null)) as object;

/** Names of all commands, in the order of the schema. */
export const COMMAND_NAMES = Object.keys(COMMAND_ARGUMENTS) as readonly CommandName[];

/** Whether a command of this name exists. */
export function isCommand(name: string): name is CommandName {
  return Object.hasOwn(COMMAND_ARGUMENTS, name);
}

/** Checks and converts the arguments of a command. `args` is a parsed JSON object; undefined: none were given. */
export function validateArguments<K extends CommandName>(
  command: K,
  args: JsonValue | undefined,
): Commands[K]['args'] {
  const typeName = COMMAND_ARGUMENTS[command];
  const given = args ?? NO_ARGUMENTS;
  if (typeName === null) {
    const unexpected = reportOrder(Object.keys(given))[0];
    if (unexpected !== undefined) throw new BlockError(`Parameter '${unexpected}' is unexpected`);
    return given as Commands[K]['args'];
  }
  return validateValue(typeName, given) as Commands[K]['args'];
}

/** Elements of a list that are checked at once: a millisecond or two. */
const PART_ELEMENTS = 1000;

/** The first member of these arguments that is too long a list to be checked in one turn; null: there is none. */
export function longListOf(args: JsonObject | undefined): string | null {
  for (const name in args) {
    const value = args[name];
    if (Array.isArray(value) && value.length > PART_ELEMENTS) return name;
  }
  return null;
}

/** validateArguments, in several turns, of arguments whose member `name` is a long list. */
export async function validateInTurns<K extends CommandName>(
  command: K,
  args: JsonObject,
  name: string,
): Promise<Commands[K]['args']> {
  const list = args[name] as readonly JsonValue[];
  const withList = (part: readonly JsonValue[]): JsonObject =>
    Object.assign(Object.create(null), args, { [name]: part }) as JsonObject;
  const validate = (part: readonly JsonValue[]): Commands[K]['args'] =>
    validateArguments(command, withList(part));
  // What is wrong with the other members, of which some come behind the list: an error within it goes first.
  const others = errorOf(() => validate([]));
  const turns = createTurns();
  const checked: unknown[] = [];
  let result = args as Commands[K]['args'];
  for (let at = 0; at < list.length; at += PART_ELEMENTS) {
    const part = list.slice(at, at + PART_ELEMENTS);
    const error = errorOf(() => {
      result = validate(part);
    });
    if (error === null) {
      checked.push(...(result as Record<string, unknown[]>)[name]!);
    } else {
      // Said again with the elements in their places, which the text may name; those before them are passed over.
      const placed = new Array<JsonValue>(at);
      placed.push(...part);
      const worded = errorOf(() => validate(placed)) ?? error;
      if (worded.message !== others?.message) throw worded;
    }
    await turns.next();
  }
  if (others !== null) throw others;
  return { ...result, [name]: checked };
}

function errorOf(step: () => void): Error | null {
  try {
    step();
    return null;
  } catch (error) {
    return error as Error;
  }
}

/** Checks and converts a parsed JSON value of a root type (arguments of a command, type of the command line). */
export function validateValue(typeName: keyof typeof VALIDATORS, value: unknown): unknown {
  if (VALIDATORS[typeName](value) && !needsConversion(value)) return value;
  return visit(typeName, value, 'json');
}

/** Integers that a handler must not see as they are: beyond 2^53, or negative for an unsigned member. */
function needsConversion(value: unknown): boolean {
  switch (typeof value) {
    case 'bigint':
      return true;
    case 'number':
      return value < 0;
    case 'object':
      if (value === null) return false;
      for (const member of Object.values(value)) if (needsConversion(member)) return true;
      return false;
    default:
      return false;
  }
}

/** The answer to an option that asks for help (`help` or `?` among its parameters). */
export const HELP_REQUESTED = Symbol('help requested');

/**
 * Reads the argument of a command line option: JSON when it starts with "{", keyval otherwise. `impliedKey` names a
 * first parameter without "=". Throws BlockError with the original's text.
 */
export function parseOption<T extends keyof CommandLineTypes>(
  typeName: T,
  text: string,
  impliedKey: string | null,
): CommandLineTypes[T] | typeof HELP_REQUESTED {
  if (text.startsWith('{')) return validateValue(typeName, parseOptionJson(text)) as CommandLineTypes[T];
  const { options, help } = parseKeyval(text, impliedKey);
  return help ? HELP_REQUESTED : (visit(typeName, options, 'keyval') as CommandLineTypes[T]);
}

function parseOptionJson(text: string): JsonValue {
  try {
    return parseJsonText(text);
  } catch (error) {
    if (error instanceof JsonError) throw new BlockError(error.message);
    throw error;
  }
}
