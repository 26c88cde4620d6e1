/** The commands around images and the tool itself: open, close, sleep, sigraise, abort, quit. */

import { constants } from 'node:os';
import { cacheMode } from '../common/environment.ts';
import { fail, readArguments, size, wholeNumber } from './arguments.ts';
import { isDiscardMode, textOptions, unmaps } from './definition.ts';
import { openPrinting } from './image.ts';
import { CommandFailed, type IoSession, UsageProblem } from './session.ts';

/** Values of -i. */
export const AIO_MODES: readonly string[] = ['threads', 'native', 'io_uring'];
/** Longest delay of one timer in milliseconds. */
const MAX_TIMER_MS = 0x7fffffff;
/** First delay in milliseconds that the original's clock, which counts nanoseconds, cannot hold. */
const SLEEP_LIMIT_MS = 2 ** 63 / 1e6;
/** What the original takes for the number of signals. */
const SIGNAL_COUNT = 65;
/** Time for a signal to arrive, in milliseconds. */
const SIGNAL_WAIT_MS = 20;

/** Prints an error and gives up. */
export function refuse({ env }: IoSession, text: string): never {
  env.output.error(text);
  throw new CommandFailed();
}

export async function open(session: IoSession, words: readonly string[]): Promise<void> {
  const { options, operands } = readArguments(session, 'open', words, 'snCro:ki:t:d:U');
  const { output } = session.env;
  const cache = options.has('n') ? 'none' : (options.get('t') ?? 'writethrough');
  if (cacheMode(cache) === null) refuse(session, `Invalid cache option: ${cache}`);
  const discard = options.get('d') ?? 'unmap';
  if (!isDiscardMode(discard)) refuse(session, `Invalid discard option: ${discard}`);
  const aio = options.has('k') ? 'native' : (options.get('i') ?? null);
  if (aio !== null && !AIO_MODES.includes(aio)) refuse(session, `Invalid aio option: ${aio}`);
  const text = options.get('o');
  const given = textOptions(text ?? '', (message) => output.warn(message));
  if (operands.length > 1 || (operands.length === 0 && text === undefined)) throw new UsageProblem();
  await openPrinting(session, {
    name: operands[0] ?? null,
    format: null,
    readOnly: options.has('r'),
    forceShare: options.has('U'),
    cache,
    unmap: unmaps(discard),
    aio,
    snapshot: options.has('s'),
    copyOnRead: options.has('C'),
    options: given.options,
  });
}

export async function close(session: IoSession): Promise<void> {
  const { image } = session;
  session.image = null;
  await image?.close();
}

export async function sleep(session: IoSession, words: readonly string[]): Promise<void> {
  const text = words[0]!;
  const ms = wholeNumber(text);
  if (ms === null || ms < 0) fail(session, `${text} is not a valid number`);
  if (ms >= SLEEP_LIMIT_MS) return;
  for (let left = ms; left > 0; left -= MAX_TIMER_MS) await delay(Math.min(left, MAX_TIMER_MS));
}

function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

export async function sigraise(session: IoSession, words: readonly string[]): Promise<void> {
  const number = size(session, words[0]!);
  if (number > SIGNAL_COUNT) {
    fail(session, `signal argument '${words[0]!}' is too large to be a valid signal`);
  }
  session.env.output.flush();
  // The original's event loop blocks this one.
  if (number === constants.signals.SIGUSR1) return;
  const name = Object.entries(constants.signals).find(([, value]) => value === number)?.[0];
  if (number !== constants.signals.SIGKILL && number !== constants.signals.SIGSTOP && name !== undefined)
    restoreDefault(name as NodeJS.Signals);
  try {
    process.kill(process.pid, number);
  } catch {
    // There is no such signal; the original does not look either.
    return;
  }
  await delay(SIGNAL_WAIT_MS);
}

/** The runtime uses some signals itself or ignores them; a listener that comes and goes leaves the system's default. */
function restoreDefault(name: NodeJS.Signals): void {
  const listener = (): void => undefined;
  try {
    process.on(name, listener);
    process.off(name, listener);
  } catch {
    // Not one that can be listened to.
  }
}

/** Ends the process as abort(3) does: what has been printed and not sent is lost. */
export async function abort(): Promise<void> {
  process.kill(process.pid, constants.signals.SIGABRT);
  await delay(SIGNAL_WAIT_MS);
}

export async function quit(session: IoSession): Promise<void> {
  session.ended = true;
}
