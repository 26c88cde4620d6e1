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
import { type CommandName, isCommand, validateArguments } from './validate.ts';

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
}

/** A dispatcher over a full set of handlers. */
export function createDispatcher<C>(context: C, handlers: Handlers<C>): Dispatcher {
  return {
    has: isCommand,
    execute: (name, args, session) => {
      if (!isCommand(name)) throw commandNotFound(`The command ${name} has not been found`);
      return run(context, handlers, name, args, session);
    },
  };
}

function run<C, K extends CommandName>(
  context: C,
  handlers: Handlers<C>,
  name: K,
  args: JsonObject | undefined,
  session: QmpSession,
): unknown {
  const handler: Handler<C, K> = handlers[name];
  return handler(context, validateArguments(name, args), session);
}

/** An error of class CommandNotFound. */
export function commandNotFound(message: string): BlockError {
  return new BlockError(message, { errorClass: 'CommandNotFound' });
}
