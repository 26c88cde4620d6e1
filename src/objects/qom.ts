/**
 * The object model that qom-list, qom-get and qom-set show: types with properties, objects with accessors.
 *
 * Here: the records, and the checks of property values with the original's error texts. Not here: the types there
 * are (types.ts), the tree of objects (tree.ts), and the commands (src/commands/qom.ts).
 */

import { BlockError } from '../errors/error.ts';

/** A type of objects. Property lists are in the order in which they are shown; inherited ones come first. */
export interface QomType {
  readonly parent: string | null;
  readonly abstract: boolean;
  /** An interface has no properties and no place among the types that qom-list-properties knows. */
  readonly isInterface?: boolean;
  /** Objects of the type can be made with object-add. */
  readonly userCreatable?: boolean;
  /** Interfaces that it implements besides. */
  readonly interfaces?: readonly string[];
  /** Own properties: name and the name of the property's type. */
  readonly properties: readonly (readonly [name: string, type: string])[];
}

/** How a property of one object is read and written; no `set`: read-only. */
export interface QomAccessor {
  readonly get: () => unknown;
  readonly set?: (value: unknown) => void;
}

export type QomAccessors = Readonly<Record<string, QomAccessor>>;

/** An object as the tree shows it: its type's name and one accessor for each property of the type but `type`. */
export interface QomObject {
  readonly typeName: string;
  readonly accessors: QomAccessors;
}

// ---- values of properties ------------------------------------------------------------------------------------

function wrongType(name: string, expected: string): BlockError {
  return new BlockError(`Invalid parameter type for '${name}', expected: ${expected}`);
}

/** The value as a string; `name` is the member's full name for the error. */
export function expectString(name: string, value: unknown): string {
  if (typeof value !== 'string') throw wrongType(name, 'string');
  return value;
}

export function expectBoolean(name: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw wrongType(name, 'boolean');
  return value;
}

const INT64_MIN = -(2n ** 63n);
const INT64_MAX = 2n ** 63n - 1n;

/** The value as an int64; beyond 2^53 it is rounded. */
export function expectInteger(name: string, value: unknown): number {
  if (typeof value === 'number' && Number.isInteger(value)) return value;
  if (typeof value === 'bigint' && value >= INT64_MIN && value <= INT64_MAX) return Number(value);
  throw wrongType(name, 'integer');
}

/** The value as an int32. */
export function expectInt32(name: string, value: unknown): number {
  const number = expectInteger(name, value);
  if (number !== (number | 0)) throw new BlockError(`Parameter '${name}' expects int32_t`);
  return number;
}

/** The value as one of `choices`. */
export function expectEnum<T extends string>(name: string, value: unknown, choices: readonly T[]): T {
  const text = expectString(name, value);
  const choice = choices.find((candidate) => candidate === text);
  // The original names the member alone here, without what it is nested in.
  const member = name.slice(name.lastIndexOf('.') + 1);
  if (choice === undefined) throw new BlockError(`Parameter '${member}' does not accept value '${text}'`);
  return choice;
}

/** Excludes arrays, and the class with which the JSON parser marks numbers that are not integers. */
function isPlainObject(value: unknown): value is Readonly<Record<string, unknown>> {
  if (typeof value !== 'object' || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || prototype === Object.prototype;
}

/** The value as an object that has no other members than `members`. */
export function expectStruct(
  name: string,
  value: unknown,
  members: readonly string[],
): Readonly<Record<string, unknown>> {
  if (!isPlainObject(value)) throw wrongType(name, 'object');
  const unexpected = Object.keys(value).find((member) => !members.includes(member));
  if (unexpected !== undefined) throw new BlockError(`Parameter '${name}.${unexpected}' is unexpected`);
  return value;
}

export function expectArray(name: string, value: unknown): readonly unknown[] {
  if (!Array.isArray(value)) throw wrongType(name, 'array');
  return value;
}

// ---- accessors over plain records ----------------------------------------------------------------------------

/** A string member of `record` that can be read and written; unset reads as "". */
export function stringProperty<K extends string>(
  record: { [P in K]: string | null },
  key: K,
  name: string,
): QomAccessor {
  return {
    get: () => record[key] ?? '',
    set: (value) => {
      record[key] = expectString(name, value);
    },
  };
}

/** A member of `record` that is one of `choices`. */
export function enumProperty<K extends string, T extends string>(
  record: { [P in K]: T },
  key: K,
  name: string,
  choices: readonly T[],
): QomAccessor {
  return {
    get: () => record[key],
    set: (value) => {
      record[key] = expectEnum(name, value, choices);
    },
  };
}

export function booleanProperty<K extends string>(
  record: { [P in K]: boolean },
  key: K,
  name: string,
): QomAccessor {
  return {
    get: () => record[key],
    set: (value) => {
      record[key] = expectBoolean(name, value);
    },
  };
}
