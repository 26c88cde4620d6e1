/** Members of the JSON area of LUKS2 headers, read with checks: every error names the member. */

/** An object of the area. */
export type Json = Readonly<Record<string, unknown>>;

/** Where in the area something is, and how to complain of it. */
export interface Place {
  readonly fail: (message: string) => Error;
  readonly path: string;
}

export function at(place: Place, part: string): Place {
  return { fail: place.fail, path: place.path === '' ? part : `${place.path}, ${part}` };
}

function wrong({ fail, path }: Place, name: string, what: string): Error {
  return fail(`${path === '' ? '' : `${path}: `}${name} is not ${what}`);
}

export function objectAt(place: Place, from: Json, name: string): Json {
  const value = from[name];
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw wrong(place, name, 'an object');
  return value as Json;
}

export function text(place: Place, from: Json, name: string): string {
  const value = from[name];
  if (typeof value !== 'string') throw wrong(place, name, 'a string');
  return value;
}

export function list(place: Place, from: Json, name: string): readonly unknown[] {
  const value = from[name];
  if (!Array.isArray(value)) throw wrong(place, name, 'an array');
  return value;
}

/** A whole number from 1 to `max`. */
export function positive(place: Place, from: Json, name: string, max: number): number {
  const value = from[name];
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > max)
    throw wrong(place, name, `a number from 1 to ${Math.floor(max)}`);
  return value;
}

/** Bytes, which the area has as text of decimal digits. */
export function sizeText(place: Place, from: Json, name: string): number {
  const value = text(place, from, name);
  if (!/^\d{1,16}$/.test(value) || !Number.isSafeInteger(Number(value)))
    throw wrong(place, name, 'a number of bytes');
  return Number(value);
}
