/**
 * The tools' options of LUKS volumes (-o) for creation and amendment: what they are called, and the way from their
 * values to the options of the schema. The luks format has them as they are, qcow2 with `encrypt.` before them.
 */

import type { QCryptoBlockAmendOptionsLUKS } from '../../../schema/generated/types.ts';
import type { CreateOption, CreateOptionValues } from '../../block/contract/image.ts';
import { E } from '../../errors/errno.ts';
import { BlockError } from '../../errors/error.ts';
import { CIPHERS, HASH_BYTES, IV_GENERATORS, MODES } from './algorithms.ts';
import type { LuksCreateOptions } from './luks.ts';

/** Options of creation, without the passphrase's, whose help depends on the format. */
export const LUKS_CREATE_OPTIONS: readonly CreateOption[] = [
  { name: 'cipher-alg', type: 'string', help: 'Name of encryption cipher algorithm' },
  { name: 'cipher-mode', type: 'string', help: 'Name of encryption cipher mode' },
  { name: 'ivgen-alg', type: 'string', help: 'Name of IV generator algorithm' },
  { name: 'ivgen-hash-alg', type: 'string', help: 'Name of IV generator hash algorithm' },
  { name: 'hash-alg', type: 'string', help: 'Name of encryption hash algorithm' },
  { name: 'iter-time', type: 'number', help: 'Time to spend in PBKDF in milliseconds' },
];

/** Options of amendment. */
export const LUKS_AMEND_OPTIONS: readonly CreateOption[] = [
  { name: 'state', type: 'string', help: 'Select new state of affected keyslots (active/inactive)' },
  {
    name: 'new-secret',
    type: 'string',
    help: 'New secret to set in the matching keyslots. Empty string to erase',
  },
  { name: 'old-secret', type: 'string', help: 'Select all keyslots that match this password' },
  { name: 'keyslot', type: 'number', help: 'Select a single keyslot to modify explicitly' },
  { name: 'iter-time', type: 'number', help: 'Time to spend in PBKDF in milliseconds' },
];

/** The same options with `prefix` before their names. */
export function prefixedOptions(prefix: string, options: readonly CreateOption[]): CreateOption[] {
  return options.map((option) => ({ ...option, name: `${prefix}${option.name}` }));
}

/** One of the values of an enumeration of the schema; `name` is what the schema calls the option. */
function choice<T extends string>(name: string, value: string, choices: readonly T[]): T {
  const found = choices.find((each) => each === value);
  if (found === undefined) throw new BlockError(`Parameter '${name}' does not accept value '${value}'`);
  return found;
}

const keysOf = <T extends string>(table: Readonly<Record<T, unknown>>): T[] => Object.keys(table) as T[];

/** The options of creation out of the tools' values; throws for what is no value, in the order of the schema. */
export function luksCreateOptions(values: CreateOptionValues): LuksCreateOptions {
  const take = <K extends string, T>(key: K, convert: (value: string) => T): { readonly [P in K]?: T } => {
    const value = values[key];
    return value === undefined ? {} : ({ [key]: convert(value) } as { readonly [P in K]?: T });
  };
  return {
    ...take('cipher-alg', (value) => choice('cipher-alg', value, keysOf(CIPHERS))),
    ...take('cipher-mode', (value) => choice('cipher-mode', value, MODES)),
    ...take('ivgen-alg', (value) => choice('ivgen-alg', value, IV_GENERATORS)),
    ...take('ivgen-hash-alg', (value) => choice('ivgen-hash-alg', value, keysOf(HASH_BYTES))),
    ...take('hash-alg', (value) => choice('hash-alg', value, keysOf(HASH_BYTES))),
    ...take('iter-time', Number),
  };
}

function refuse(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** The options of amendment out of the tools' values. */
export function luksAmendOptions(values: CreateOptionValues): QCryptoBlockAmendOptionsLUKS {
  const { state, keyslot, 'iter-time': iterTime } = values;
  if (state === undefined) throw refuse("Parameter 'state' is missing");
  if (state !== 'active' && state !== 'inactive')
    throw refuse(`Parameter 'state' does not accept value '${state}'`);
  const text = (name: 'new-secret' | 'old-secret' | 'secret') =>
    values[name] === undefined ? {} : { [name]: values[name] };
  return {
    state,
    ...text('new-secret'),
    ...text('old-secret'),
    ...text('secret'),
    ...(keyslot !== undefined && { keyslot: Number(keyslot) }),
    ...(iterTime !== undefined && { 'iter-time': Number(iterTime) }),
  };
}
