/**
 * The command reopen: other options for the open image.
 *
 * The image is closed and opened again, so for a moment its locks are not held, unlike with a reopening in place. What
 * a reopening in place could not change is refused beforehand.
 */

import type { DriverOptions } from '../../block/contract/image.ts';
import type { BlockNode } from '../../block/graph/node.ts';
import { BlockError } from '../../errors/error.ts';
import { cacheMode } from '../common/environment.ts';
import type { FlatPair } from '../common/flat-options.ts';
import { readArguments } from './arguments.ts';
import { isRecord, textOptions } from './definition.ts';
import { openImage } from './image.ts';
import { close, refuse } from './manage.ts';
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
    await replace(session, before, {
      ...before,
      format: before.name === null ? null : node.driver.name,
      readOnly,
      cache: cache ?? before.cache,
      options: merged(cache === undefined ? before.options : without(before.options, ['cache']), given),
    });
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

/** Opens with the new settings; with the old ones again when that fails. */
async function replace(session: IoSession, before: OpenSettings, wanted: OpenSettings): Promise<void> {
  if (before.snapshot) throw new BlockError('A temporary image cannot be opened again');
  await close(session);
  try {
    await openImage(session, wanted);
  } catch (error) {
    await openImage(session, before);
    throw error;
  }
}

/** The new options on top of the old ones; what cannot change has been checked and needs no mention. */
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
