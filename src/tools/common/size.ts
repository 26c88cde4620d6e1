/**
 * Sizes on the tools' command lines ("64k", "1.5G", "0x200"), and sizes as people read them ("1.5 GiB").
 *
 * The grammar was found by probing qemu-img 7.2: blanks and a plus sign in front; digits, with a fraction where a
 * suffix makes it a whole number of bytes; or hexadecimal digits; then at most one suffix letter.
 */

import { BlockError } from '../../errors/error.ts';
import { general } from '../../qmp/c-numbers.ts';

export type ParsedSize =
  | { readonly kind: 'size'; readonly bytes: bigint; readonly warning?: string }
  /** Not a size at all. */
  | { readonly kind: 'invalid' }
  /** 2^64 or more. */
  | { readonly kind: 'range' };

const SUFFIXES = 'bkmgtpe';
const LIMIT = 2n ** 64n;
/** Longest text that is looked at: converting digits takes more than linear time. */
const MAX_TEXT = 512;

/**
 * Reads a size below 2^64. `suffix` is what a number without one is counted in: '' for bytes, 'M' for mebibytes.
 * A warning is to be printed behind "PROGRAM: warning: ".
 */
export function parseSize(text: string, suffix = ''): ParsedSize {
  if (text.length > MAX_TEXT) return { kind: 'invalid' };
  const hex = /^\s*\+?0x([0-9a-f]+)([kmgtp]?)$/i.exec(text);
  if (hex !== null) {
    const bytes = BigInt(`0x${hex[1]}`) * unitOf(hex[2] || suffix);
    if (bytes >= LIMIT) return { kind: 'range' };
    if (hex[2] === '') return { kind: 'size', bytes };
    const warning = `Using a multiplier suffix on hex numbers is deprecated: ${text}`;
    return { kind: 'size', bytes, warning };
  }
  const decimal = /^\s*\+?([0-9]+)(?:\.([0-9]*))?([bkmgtpe]?)$/i.exec(text);
  if (decimal === null) return { kind: 'invalid' };
  const [, whole = '', fractionDigits = '', given = ''] = decimal;
  const unit = unitOf(given || suffix);
  // The original reads the fraction as a double, and takes one that rounds to 1 for none.
  const read = Number(`0.${fractionDigits || '0'}`);
  const fraction = read === 1 ? 0 : read;
  if (fraction !== 0 && unit === 1n) return { kind: 'invalid' };
  const bytes = BigInt(whole) * unit + scaled(fraction, unit);
  return bytes >= LIMIT ? { kind: 'range' } : { kind: 'size', bytes };
}

function unitOf(suffix: string): bigint {
  return suffix === '' ? 1n : 1n << BigInt(10 * SUFFIXES.indexOf(suffix.toLowerCase()));
}

/** The fraction of a unit, half a byte and more rounded up. The product is exact: units are powers of two. */
function scaled(fraction: number, unit: bigint): bigint {
  const product = fraction * Number(unit);
  return product >= 2 ** 52 ? BigInt(product) : BigInt(Math.floor(product + 0.5));
}

/** The value of a number option below 2^64, as strtoull(3) reads it: what is negative counts from 2^64 down. */
export function parseNumber(name: string, value: string): bigint {
  const match = /^\s*([+-]?)(0x[0-9a-f]+|\d+)$/i.exec(value);
  if (match === null || value.length > 512) throw new BlockError(`Parameter '${name}' expects a number`);
  const [, sign, digits = ''] = match;
  const isOctal = /^0[0-7]+$/.test(digits);
  if (/^0\d+$/.test(digits) && !isOctal) throw new BlockError(`Parameter '${name}' expects a number`);
  const magnitude = BigInt(isOctal ? `0o${digits.slice(1)}` : digits);
  if (magnitude >= 1n << 64n) throw new BlockError(`Value '${value}' is too large for parameter '${name}'`);
  return sign === '-' ? BigInt.asUintN(64, -magnitude) : magnitude;
}

const UNITS = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei'];

/** Bytes with three significant digits: "0 B", "999 B", "0.977 MiB", "1.5 GiB". A unit ends below 1000. */
export function humanSize(bytes: number): string {
  let exponent = 0;
  while (exponent < UNITS.length - 1 && bytes / 1024 ** exponent >= 1000) exponent++;
  return `${general(bytes / 1024 ** exponent, 3)} ${UNITS[exponent]}B`;
}
