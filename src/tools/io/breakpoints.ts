/** The commands around breakpoints of blkdebug: break, remove_break, resume, wait_break. */

import type { BlockDebugger } from '../../block/contract/debugger.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { withDebugger } from '../../block/io/debug.ts';
import { BlockError } from '../../errors/error.ts';
import { CommandFailed, type IoSession } from './session.ts';

/** Time between two looks at whether a request is suspended, in milliseconds. */
const LOOK_AGAIN_MS = 1;

function attempt(
  session: IoSession,
  what: string,
  action: (debug: BlockDebugger, at: BlockNode) => void,
): void {
  try {
    withDebugger(session.image!.node, action);
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    session.env.output.print(`${what}: ${error.message}\n`);
    throw new CommandFailed();
  }
}

export async function set(session: IoSession, [event = '', tag = '']: readonly string[]): Promise<void> {
  attempt(session, 'Could not set breakpoint', (debug, at) => debug.setBreakpoint(at, event, tag));
}

export async function remove(session: IoSession, [tag = '']: readonly string[]): Promise<void> {
  attempt(session, `Could not remove breakpoint ${tag}`, (debug, at) => debug.removeBreakpoint(at, tag));
}

export async function resume(session: IoSession, [tag = '']: readonly string[]): Promise<void> {
  attempt(session, 'Could not resume request', (debug, at) => debug.resume(at, tag));
}

/** Without a debugger there is nothing to wait for; the original waits for ever. */
export async function waitFor(session: IoSession, [tag = '']: readonly string[]): Promise<void> {
  const isWaiting = (): boolean => {
    try {
      return withDebugger(session.image!.node, (debug, at) => !debug.isSuspended(at, tag));
    } catch {
      return false;
    }
  };
  while (isWaiting()) await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
}
