/**
 * Names of images in Ceph, and options by older names.
 *
 *   rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT][:id=USER][:conf=FILE][:OPTION=VALUE...]
 *
 * A backslash takes the meaning from the character behind it. Source of the facts: QEMU and Ceph documentation ("QEMU
 * and block devices"); error texts from qemu-img 7.2.
 */

import type { DriverOptions } from '../../../block/contract/image.ts';
import type { NameCallbacks } from '../../../block/contract/names.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';

/** Settings of Ceph from a name, as a flat list of names and values; the schema does not have them. */
export const PAIRS_OPTION = '=keyvalue-pairs';

function einval(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** The text up to the first `mark` without a backslash before it, and what is behind that; null: there is none. */
function splitAt(text: string, mark: string): readonly [string, string | null] {
  for (let at = 0; at < text.length; at++) {
    if (text[at] === '\\') at++;
    else if (text[at] === mark) return [text.slice(0, at), text.slice(at + 1)];
  }
  return [text, null];
}

function plain(text: string): string {
  return text.replace(/\\(.)/gs, '$1');
}

/** Options for what is behind "rbd:". */
export function parseName(rest: string): DriverOptions {
  const [pool, behindPool] = splitAt(rest, '/');
  if (behindPool === null) throw einval('Pool name is required');
  const options: Record<string, unknown> = { pool: plain(pool) };
  const [place, settings] = splitAt(behindPool, ':');
  const [named, snapshot] = splitAt(place, '@');
  if (snapshot !== null) options.snapshot = plain(snapshot);
  const [first, second] = splitAt(named, '/');
  options.namespace = second === null ? '' : plain(first);
  options.image = plain(second ?? first);
  const pairs: string[] = [];
  for (let left = settings; left !== null && left !== ''; ) {
    const [pair, more] = splitAt(left, ':');
    const [name, value] = splitAt(pair, '=');
    left = more;
    if (value === null) throw einval(`conf option ${plain(name)} has no value`);
    if (plain(name) === 'id') options.user = plain(value);
    else if (plain(name) === 'conf') options.conf = plain(value);
    else pairs.push(plain(name), plain(value));
  }
  if (pairs.length > 0) options[PAIRS_OPTION] = JSON.stringify(pairs);
  return options;
}

/** Options by the names that only the tools take. */
function modernOptions(options: DriverOptions): DriverOptions {
  const { 'password-secret': secret, ...rest } = options;
  return secret === undefined ? rest : { 'key-secret': secret, ...rest };
}

export const rbdNames = {
  parseName: (rest, prefix) => parseName(prefix === '' ? rest.replace(/^rbd:/, '') : rest),
  nameOptions: [PAIRS_OPTION],
  modernOptions,
} as const satisfies NameCallbacks;
