/**
 * Walks a value along its schema type, in the order in which the original checks: depth first, members in the order
 * of the schema, unexpected members last. It words the errors and converts the value.
 *
 * Two modes. 'json': values carry their JSON types; integers become JS numbers (rounded beyond 2^53, negative ones
 * of unsigned 64-bit members by two's complement). 'keyval': scalars are strings from the command line and are
 * converted by type. Error texts were compared with qemu-storage-daemon 7.2, including that some name a member by
 * its path and some by its last name alone, and that a list element has the last name "null".
 */

import { VISITOR_TYPES, type VisitorType } from '../../schema/generated/visitor-tables.ts';
import { assert, BlockError } from '../errors/error.ts';
import { reportOrder } from '../errors/member-order.ts';
import { JsonFloat } from './json-value.ts';

export type VisitMode = 'json' | 'keyval';

type ObjectTable = Extract<VisitorType, { kind: 'object' }>;
type AlternateTable = Extract<VisitorType, { kind: 'alternate' }>;

/** Where a value is: its path in full, and its last name (null for list elements). */
interface Place {
  readonly path: string;
  readonly name: string | null;
}

/** Checks and converts a value; throws BlockError with the original's text. */
export function visit(typeName: string, value: unknown, mode: VisitMode): unknown {
  return new Visitor(mode).visit(typeName, value, { path: '', name: null });
}

const UNSIGNED_MAX: Readonly<Record<string, number>> = { uint8: 0xff, uint16: 0xffff, uint32: 0xffff_ffff };
const TWO_63 = 2 ** 63;
const TWO_64 = 2 ** 64;

class Visitor {
  readonly #mode: VisitMode;

  constructor(mode: VisitMode) {
    this.#mode = mode;
  }

  visit(type: string, value: unknown, place: Place): unknown {
    if (type.startsWith('[')) return this.#visitList(type.slice(1, -1), value, place);
    switch (type) {
      case 'str':
        this.#requireScalar(value, place);
        if (typeof value !== 'string') throw wrongType(place, 'string');
        return value;
      case 'bool':
        return this.#visitBoolean(value, place);
      case 'int64':
        return this.#visitInteger(value, place);
      case 'uint64':
      case 'uint8':
      case 'uint16':
      case 'uint32':
        return this.#visitUnsigned(type, value, place);
      case 'any':
        return value;
      case 'null':
        if (value !== null) throw wrongType(place, 'null');
        return null;
      case 'number':
        if (typeof value === 'number') return value;
        if (value instanceof JsonFloat) return value.value;
        throw wrongType(place, 'number');
      default:
        return this.#visitNamed(type, value, place);
    }
  }

  #visitNamed(typeName: string, value: unknown, place: Place): unknown {
    const type = VISITOR_TYPES[typeName];
    assert(type !== undefined, `no schema type ${typeName}`);
    switch (type.kind) {
      case 'enum':
        this.#requireScalar(value, place);
        if (typeof value !== 'string') throw wrongType(place, 'string');
        if (!type.values.includes(value)) {
          throw new BlockError(`Parameter '${place.name}' does not accept value '${value}'`);
        }
        return value;
      case 'object':
        return this.#visitObject(type, value, place);
      case 'alternate':
        return this.#visitAlternate(typeName, type, value, place);
    }
  }

  #visitObject(type: ObjectTable, value: unknown, place: Place): unknown {
    if (!isRecord(value)) throw wrongType(place, 'object');
    const result: Record<string, unknown> = Object.create(null);
    this.#visitMembers(type, value, place, result);
    if (type.tag !== undefined) {
      const branch = type.branches?.[String(result[type.tag])];
      const struct = branch == null ? undefined : VISITOR_TYPES[branch];
      if (struct?.kind === 'object') this.#visitMembers(struct, value, place, result);
    }
    for (const name of reportOrder(Object.keys(value))) {
      if (!(name in result)) throw new BlockError(`Parameter '${memberPath(place, name)}' is unexpected`);
    }
    return result;
  }

  #visitMembers(
    type: ObjectTable,
    value: Readonly<Record<string, unknown>>,
    place: Place,
    result: Record<string, unknown>,
  ): void {
    for (const [name, memberType, optional] of type.members) {
      const path = memberPath(place, name);
      if (value[name] !== undefined) result[name] = this.visit(memberType, value[name], { path, name });
      else if (optional === 0) throw new BlockError(`Parameter '${path}' is missing`);
    }
  }

  #visitList(elementType: string, value: unknown, place: Place): readonly unknown[] {
    if (!Array.isArray(value)) throw wrongType(place, 'array');
    return value.map((element, index) => {
      const path = this.#mode === 'json' ? `${place.path}[${index}]` : `${place.path}.${index}`;
      return this.visit(elementType, element, { path, name: null });
    });
  }

  #visitAlternate(typeName: string, type: AlternateTable, value: unknown, place: Place): unknown {
    const choice = type.choices[jsonTypeName(value)];
    if (choice === undefined) {
      throw new BlockError(`Invalid parameter type for '${place.name}', expected: ${typeName}`);
    }
    return this.visit(choice, value, place);
  }

  #visitBoolean(value: unknown, place: Place): boolean {
    if (this.#mode === 'json') {
      if (typeof value !== 'boolean') throw wrongType(place, 'boolean');
      return value;
    }
    switch (this.#requireScalar(value, place)) {
      case 'on':
      case 'yes':
      case 'true':
      case 'y':
        return true;
      case 'off':
      case 'no':
      case 'false':
      case 'n':
        return false;
      default:
        throw new BlockError(`Parameter '${place.path}' expects 'on' or 'off'`);
    }
  }

  #visitInteger(value: unknown, place: Place): number {
    if (this.#mode === 'keyval') {
      const parsed = parseInteger(this.#requireScalar(value, place));
      if (parsed === null || parsed < -(2n ** 63n) || parsed >= 2n ** 63n) throw expectsInteger(place);
      return Number(parsed);
    }
    if (!isInteger(value) || value < -TWO_63 || value >= TWO_63) throw wrongType(place, 'integer');
    return Number(value);
  }

  #visitUnsigned(type: string, value: unknown, place: Place): number {
    const parsed = this.#mode === 'keyval' ? this.#keyvalUnsigned(value, place) : value;
    if (!isInteger(parsed) || parsed < -TWO_63 || parsed >= TWO_64) {
      throw new BlockError(`Parameter '${place.path}' expects uint64`);
    }
    const wrapped = parsed < 0 ? Number(BigInt.asUintN(64, BigInt(parsed))) : Number(parsed);
    if (wrapped > (UNSIGNED_MAX[type] ?? TWO_64))
      throw new BlockError(`Parameter '${place.name}' expects ${type}_t`);
    return wrapped;
  }

  #keyvalUnsigned(value: unknown, place: Place): bigint {
    const parsed = parseInteger(this.#requireScalar(value, place));
    if (parsed === null || parsed <= -(2n ** 64n) || parsed >= 2n ** 64n) throw expectsInteger(place);
    return BigInt.asUintN(64, parsed);
  }

  /** In keyval mode, a value must not have been given by members (`size.x=1`). */
  #requireScalar(value: unknown, place: Place): string {
    if (this.#mode === 'keyval' && typeof value !== 'string') {
      throw new BlockError(`Parameters '${place.path}.*' are unexpected`);
    }
    return typeof value === 'string' ? value : '';
  }
}

function memberPath(place: Place, name: string): string {
  return place.path === '' ? name : `${place.path}.${name}`;
}

function wrongType(place: Place, expected: string): BlockError {
  return new BlockError(`Invalid parameter type for '${place.path}', expected: ${expected}`);
}

function expectsInteger(place: Place): BlockError {
  return new BlockError(`Parameter '${place.path}' expects integer`);
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return (
    typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof JsonFloat)
  );
}

function isInteger(value: unknown): value is number | bigint {
  return typeof value === 'bigint' || Number.isInteger(value);
}

function jsonTypeName(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  if (isInteger(value)) return 'integer';
  return isRecord(value) ? 'object' : typeof value === 'object' ? 'number' : typeof value;
}

/** Longest integer text that is converted: conversion takes more than linear time. */
const INTEGER_TEXT_MAX = 80;

/** An integer as strtoll(3) with base 0 reads it: leading space, a sign, 0x or 0 for other bases. */
function parseInteger(text: string): bigint | null {
  if (text.length > INTEGER_TEXT_MAX) return null;
  const match = /^[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))$/.exec(text);
  if (match === null) return null;
  const [, sign, hex, octal, decimal] = match;
  let magnitude: bigint;
  if (hex !== undefined) magnitude = BigInt(`0x${hex}`);
  else if (octal !== undefined) magnitude = BigInt(`0o0${octal}`);
  else magnitude = BigInt(decimal ?? '0');
  return sign === '-' ? -magnitude : magnitude;
}
