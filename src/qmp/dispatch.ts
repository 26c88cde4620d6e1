/**
 * From the name of a command to its handler: look-up, argument checks, the call.
 *
 * Which commands exist is the schema's matter, what they do is src/commands'; the state of a session (negotiation,
 * queue, out-of-band) is session.ts's.
 */

import type { Commands } from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import type { JsonObject } from './json-value.ts';
import type { QmpSession } from './session.ts';
import { type CommandName, isCommand, longListOf, validateArguments, validateInTurns } from './validate.ts';

/** A command: plain data in, plain data out. Commands that return nothing return {}. */
export type Handler<C, K extends CommandName> = (
  context: C,
  args: Commands[K]['args'],
  session: QmpSession,
) => Commands[K]['ret'] | Promise<Commands[K]['ret']>;

/** A handler for each of the commands K. */
export type Handlers<C, K extends CommandName = CommandName> = { readonly [P in K]: Handler<C, P> };

export interface Dispatcher {
  /** Whether a command of this name exists. */
  has(name: string): boolean;
  /**
   * Runs a command. Throws or rejects with BlockError. A result that is no promise is final: nothing ran
   * asynchronously.
   */
  execute(name: string, args: JsonObject | undefined, session: QmpSession): unknown;
  /** The command that runs waits for something that takes long: others need not wait for it, where that is safe. */
  letOthersGo(): void;
}

/**
 * Commands whose long waits nobody else has to wait for: what they wait in has no name yet, so that no other command
 * can come upon it.
 */
const LETS_OTHERS_GO: ReadonlySet<string> = new Set(['blockdev-add']);

/** How long `quit` waits for a command that runs. */
const QUIT_PATIENCE_MS = 1000;

/** Commands that only touch the session they came by; they never wait for others. */
const OF_THE_SESSION: ReadonlySet<string> = new Set(['qmp_capabilities']);

/**
 * A dispatcher over a full set of handlers. Commands of all sessions run one after another: a command looks at the
 * state that it changes, often with awaits in between. `around` runs each of them.
 */
export function createDispatcher<C>(
  context: C,
  handlers: Handlers<C>,
  around: <T>(section: () => T) => T = (section) => section(),
): Dispatcher {
  /** Resolves when the last command that was begun has ended; null when none is under way. */
  let last: Promise<void> | null = null;
  /** Lets what waits for the command that was begun last go on. */
  let letGo: (() => void) | null = null;
  const execute = (name: CommandName, args: JsonObject | undefined, session: QmpSession): unknown =>
    around(() => run(context, handlers, name, args, session));
  const next = (name: string, result: Promise<unknown>): Promise<unknown> => {
    const released = new Promise<void>((resolve) => {
      letGo = LETS_OTHERS_GO.has(name) ? resolve : null;
    });
    const ended: Promise<void> = Promise.race([result.then(nothing, nothing), released]).then(() => {
      if (last === ended) last = null;
    });
    last = ended;
    return result;
  };
  return {
    has: isCommand,
    execute: (name, args, session) => {
      if (!isCommand(name)) throw commandNotFound(`The command ${name} has not been found`);
      if (OF_THE_SESSION.has(name)) return execute(name, args, session);
      if (last !== null) {
        const turn = name === 'quit' ? Promise.race([last, patience()]) : last;
        return next(
          name,
          turn.then(() => execute(name, args, session)),
        );
      }
      const result = execute(name, args, session);
      return result instanceof Promise ? next(name, result) : result;
    },
    letOthersGo: () => letGo?.(),
  };
}

function patience(): Promise<void> {
  return new Promise((resolve) => {
    setTimeout(resolve, QUIT_PATIENCE_MS).unref();
  });
}

function nothing(): void {
  // What became of a command is the matter of whoever sent it.
}

function run<C, K extends CommandName>(
  context: C,
  handlers: Handlers<C>,
  name: K,
  args: JsonObject | undefined,
  session: QmpSession,
): unknown {
  const handler: Handler<C, K> = handlers[name];
  const long = longListOf(args);
  if (args === undefined || long === null) return handler(context, validateArguments(name, args), session);
  return validateInTurns(name, args, long).then((checked) => handler(context, checked, session));
}

/** An error of class CommandNotFound. */
export function commandNotFound(message: string): BlockError {
  return new BlockError(message, { errorClass: 'CommandNotFound' });
}
