/**
 * The command reopen: other options for the open image, which stays open: its locks are held all the time. What cannot
 * change while an image is open is refused.
 */

import type { DriverOptions } from '../../block/contract/image.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { changeOptions } from '../../block/open/reopen.ts';
import { BlockError } from '../../errors/error.ts';
import { cacheMode, withAccess } from '../common/environment.ts';
import type { FlatPair } from '../common/flat-options.ts';
import { typedChange } from '../common/image-options.ts';
import { readArguments } from './arguments.ts';
import { isDiscardMode, isRecord, textOptions, unmaps } from './definition.ts';
import { refuse } from './manage.ts';
import { CommandFailed, type IoSession, type OpenSettings, UsageProblem } from './session.ts';

/** Options of every node that can change while it is open. */
const COMMON: ReadonlySet<string> = new Set([
  'read-only',
  'auto-read-only',
  'discard',
  'detect-zeroes',
  'cache',
]);
/** Options of a driver that can change while it is open; by the first part of their name. */
const BY_DRIVER: Readonly<Record<string, ReadonlySet<string>>> = {
  qcow2: new Set([
    'lazy-refcounts',
    'pass-discard-request',
    'pass-discard-snapshot',
    'pass-discard-other',
    'overlap-check',
    'cache-size',
    'l2-cache-size',
    'l2-cache-entry-size',
    'refcount-cache-size',
    'cache-clean-interval',
    'encrypt',
  ]),
  raw: new Set(['offset', 'size']),
};

export async function reopen(session: IoSession, words: readonly string[]): Promise<void> {
  const { options, operands } = readArguments(session, 'reopen', words, 'c:o:rw');
  const cache = options.get('c');
  if (cache !== undefined && cacheMode(cache) === null) refuse(session, `Invalid cache option: ${cache}`);
  if (options.has('r') && options.has('w')) refuse(session, 'Only one -r/-w option may be given');
  if (operands.length > 0) throw new UsageProblem();
  const text = options.get('o') ?? '';
  const { pairs, options: given } = textOptions(text, (message) => session.env.output.warn(message));
  if ((options.has('r') || options.has('w')) && given['read-only'] !== undefined)
    refuse(session, "Cannot set both -r/-w and 'read-only'");
  if (cache !== undefined && isRecord(given.cache))
    refuse(session, 'Cannot set both -c and the cache options');
  const before = session.opened!;
  try {
    const { node } = session.image!;
    checkChangeable(node, pairs);
    const asked = given['read-only'] === undefined ? null : on(given['read-only']);
    // Only -r takes the user's own wish to write back with it.
    if (asked === true && !before.readOnly)
      throw new BlockError(`Read-only block node '${node.name}' cannot support read-write users`);
    const readOnly = options.has('r') || (!options.has('w') && (asked ?? before.readOnly));
    if (readOnly && before.copyOnRead)
      throw new BlockError(`Can't set node '${node.name}' to r/o with copy-on-read enabled`);
    const all = merged(cache === undefined ? before.options : without(before.options, ['cache']), given);
    await change(session, before, { ...before, readOnly, cache: cache ?? before.cache, options: all }, given);
  } catch (error) {
    session.env.output.error(error);
    throw new CommandFailed();
  }
}

function on(value: unknown): boolean {
  if (['on', 'yes', 'true', 'y'].includes(String(value))) return true;
  if (['off', 'no', 'false', 'n'].includes(String(value))) return false;
  throw new BlockError("Parameter 'read-only' expects 'on' or 'off'");
}

/** Gives the node its new options; who uses it may write no more before, or may write afterwards. */
async function change(
  session: IoSession,
  before: OpenSettings,
  wanted: OpenSettings,
  given: DriverOptions,
): Promise<void> {
  const { env } = session;
  const { node } = session.image!;
  const cacheGiven = wanted.cache === before.cache && isRecord(given.cache) ? null : cacheMode(wanted.cache);
  const access = (settings: OpenSettings) => {
    const cache = cacheMode(settings.cache);
    return { write: !settings.readOnly, resize: !settings.readOnly, ...(cache !== null && { cache }) };
  };
  const changes = {
    ...typedChange(node, changeable(given)),
    ...(wanted.readOnly !== before.readOnly && { 'read-only': wanted.readOnly }),
    ...(cacheGiven !== null && { 'cache.direct': cacheGiven.direct, 'cache.no-flush': cacheGiven.noFlush }),
  };
  if (wanted.readOnly && !before.readOnly)
    session.image = await withAccess(env, session.image!, access(wanted));
  try {
    await changeOptions(node, changes);
  } catch (error) {
    if (wanted.readOnly && !before.readOnly)
      session.image = await withAccess(env, session.image!, access(before));
    throw error;
  }
  session.image = await withAccess(env, session.image!, access(wanted));
  session.opened = wanted;
}

/** What may change, as drivers want it; the rest has been checked to be what it was. */
function changeable(given: DriverOptions): DriverOptions {
  const rest = without(given, ['read-only', 'driver', 'node-name', 'filename', 'data-file']);
  const { discard, 'detect-zeroes': detectZeroes } = rest;
  if (discard !== undefined && !isDiscardMode(String(discard)))
    throw new BlockError('Invalid discard option');
  if (detectZeroes !== undefined && !['off', 'on', 'unmap'].includes(String(detectZeroes)))
    throw new BlockError(`invalid parameter value: ${String(detectZeroes)}`);
  return { ...rest, ...(discard !== undefined && { discard: unmaps(String(discard)) ? 'unmap' : 'ignore' }) };
}

/** The new options on top of the old ones. */
function merged(before: DriverOptions, given: DriverOptions): DriverOptions {
  const rest = without(given, ['read-only', 'driver', 'node-name', 'file', 'backing', 'data-file']);
  const inner = Object.entries(rest).map(([name, value]) => {
    const old = before[name];
    return [name, isRecord(value) && isRecord(old) ? { ...old, ...value } : value];
  });
  return { ...before, ...(Object.fromEntries(inner) as DriverOptions) };
}

function without(options: DriverOptions, names: readonly string[]): DriverOptions {
  return Object.fromEntries(Object.entries(options).filter(([name]) => !names.includes(name)));
}

/** Throws for the first option that is not what it is now and cannot change. */
function checkChangeable(node: BlockNode, pairs: readonly FlatPair[]): void {
  for (const { key, value } of pairs) {
    const [first = '', ...rest] = key.split('.');
    const child = node.child(first);
    if (child === null || rest.length === 0) checkOwn(node, first, key, value);
    else checkChangeable(child.node, [{ key: rest.join('.'), value }]);
  }
}

function checkOwn(node: BlockNode, first: string, key: string, value: string): void {
  if (node.driver.kind !== 'protocol' && (first === 'file' || (first === 'backing' && key === first)))
    throw new BlockError(`Cannot find device='' nor node-name='${value}'`);
  if (COMMON.has(first) || BY_DRIVER[node.driver.name]?.has(first) === true) return;
  const current =
    key === 'driver' ? node.driver.name : key === 'node-name' ? node.name : node.settings.options[key];
  if (current === undefined || String(current) !== value)
    throw new BlockError(`Cannot change the option '${key}'`);
}
