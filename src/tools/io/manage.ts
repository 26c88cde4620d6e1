/** The commands around images and the tool itself: open, close, reopen, sleep, sigraise, abort, quit. */

import { constants } from 'node:os';
import { BlockError } from '../../errors/error.ts';
import { cacheMode, type ImageRequest, openToolImage, prefixed } from '../common/environment.ts';
import { parseFlatOptions } from '../common/flat-options.ts';
import { nestOptions } from '../common/image-options.ts';
import { readArguments, size } from './arguments.ts';
import { CommandFailed, type IoSession, type OpenSettings, UsageProblem } from './session.ts';

/** Opens the image that the settings describe; errors are printed. */
export async function openWith(session: IoSession, settings: OpenSettings): Promise<void> {
  const { env } = session;
  if (session.image !== null) {
    env.output.error("file open already, try 'help close'");
    throw new CommandFailed();
  }
  const cache = cacheMode(settings.cache);
  const request: ImageRequest = {
    name: settings.name,
    imageOpts: settings.imageOpts,
    format: settings.format,
    write: !settings.readOnly,
    resize: !settings.readOnly,
    forceShare: settings.forceShare,
    unmap: settings.unmap,
    ...(cache === null ? {} : { cache }),
    options: settings.options,
  };
  try {
    session.image = await openToolImage(env, request);
    session.opened = settings;
  } catch (error) {
    const name = settings.name === '' ? '' : ` ${settings.name}`;
    env.output.error(prefixed(`can't open${name === '' ? '' : ' device'}${name}: `, error));
    throw new CommandFailed();
  }
}

export async function open(session: IoSession, words: readonly string[]): Promise<void> {
  const { options, operands } = readArguments(session, 'open', words, 'snCro:ki:t:d:U');
  const refuse = (text: string): never => {
    session.env.output.error(text);
    throw new CommandFailed();
  };
  const cache = options.has('n') ? 'none' : (options.get('t') ?? 'writeback');
  if (cacheMode(cache) === null) refuse(`Invalid cache option: ${cache}`);
  const discard = options.get('d') ?? 'unmap';
  if (!isDiscardMode(discard)) refuse(`Invalid discard option: ${discard}`);
  const text = options.get('o');
  const given = text === undefined ? {} : nestOptions(parseFlatOptions(text, null, () => undefined).pairs);
  if (operands.length > 1 || (operands.length === 0 && text === undefined)) throw new UsageProblem();
  const isDescribed = operands.length === 0;
  await openWith(session, {
    name: isDescribed ? (text ?? '') : operands[0]!,
    imageOpts: isDescribed,
    format: !isDescribed && typeof given.driver === 'string' ? given.driver : null,
    readOnly: options.has('r'),
    forceShare: options.has('U'),
    cache,
    unmap: discard === 'unmap' || discard === 'on',
    options: isDescribed ? {} : Object.fromEntries(Object.entries(given).filter(([key]) => key !== 'driver')),
  });
}

export function isDiscardMode(text: string): boolean {
  return ['unmap', 'on', 'ignore', 'off'].includes(text);
}

export async function close(session: IoSession): Promise<void> {
  const { image } = session;
  session.image = null;
  await image?.close();
}

/**
 * Opens the image again with other settings. The image is closed in between: for a moment its locks are not held,
 * unlike with a reopening in place.
 */
export async function reopen(session: IoSession, words: readonly string[]): Promise<void> {
  const { options, operands } = readArguments(session, 'reopen', words, 'c:o:rw');
  const { output } = session.env;
  const refuse = (text: string): never => {
    output.error(text);
    throw new CommandFailed();
  };
  if (options.has('r') && options.has('w')) refuse('Only one -r/-w option may be given');
  const cache = options.get('c');
  if (cache !== undefined && cacheMode(cache) === null) refuse(`Invalid cache option: ${cache}`);
  if (operands.length > 0) throw new UsageProblem();
  const before = session.opened!;
  const text = options.get('o');
  const given = text === undefined ? {} : nestOptions(parseFlatOptions(text, null, () => undefined).pairs);
  const wanted: OpenSettings = {
    ...before,
    readOnly: options.has('r') ? true : options.has('w') ? false : before.readOnly,
    cache: cache ?? before.cache,
    options: { ...before.options, ...given },
  };
  await close(session);
  try {
    await openWith(session, wanted);
  } catch (error) {
    await openWith(session, before);
    throw error;
  }
}

export async function sleep(session: IoSession, words: readonly string[]): Promise<void> {
  const text = words[0]!;
  const ms = /^\s*[+-]?(0[xX][0-9a-fA-F]+|\d+)$/.test(text) ? Number(text) : Number.NaN;
  if (Number.isNaN(ms)) {
    session.env.output.print(`${text} is not a valid number\n`);
    throw new CommandFailed();
  }
  await new Promise((resolve) => setTimeout(resolve, Math.max(0, ms)));
}

export async function sigraise(session: IoSession, words: readonly string[]): Promise<void> {
  const number = size(session, words[0]!);
  const known = Object.entries(constants.signals).find(([, value]) => value === number);
  session.env.output.flush();
  if (known === undefined) throw new BlockError(`Invalid signal ${number}`);
  process.kill(process.pid, known[0] as NodeJS.Signals);
  // Let it arrive before anything else is done.
  await new Promise((resolve) => setTimeout(resolve, 20));
}

export async function abort(session: IoSession): Promise<void> {
  session.env.output.flush();
  process.abort();
}

export async function quit(session: IoSession): Promise<void> {
  session.ended = true;
}

/** Breakpoints belong to a driver that is not here yet. */
export function unsupported(what: (words: readonly string[]) => string) {
  return async (session: IoSession, words: readonly string[]): Promise<void> => {
    session.env.output.print(`${what(words)}: Operation not supported\n`);
    throw new CommandFailed();
  };
}
