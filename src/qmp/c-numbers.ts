/**
 * Numbers as C prints them: exact ties are rounded to the even digit, where JavaScript rounds them up. Whatever the
 * original prints as a double goes by these.
 */

/** The exact value of a finite number that is not negative, in decimal: digits in front of the point and behind it. */
function exact(value: number): readonly [string, string] {
  const view = new DataView(new ArrayBuffer(8));
  view.setFloat64(0, value);
  const bits = view.getBigUint64(0);
  const biased = Number(bits >> 52n);
  // value = mantissa * 2^power, and 2^-n is 5^n with the point n digits further left.
  const mantissa = (bits & ((1n << 52n) - 1n)) | (biased === 0 ? 0n : 1n << 52n);
  const power = Math.max(biased, 1) - 1075;
  if (power >= 0) return [(mantissa << BigInt(power)).toString(), ''];
  const text = (mantissa * 5n ** BigInt(-power)).toString().padStart(1 - power, '0');
  return [text.slice(0, text.length + power), text.slice(text.length + power)];
}

/** The whole number `kept`, one higher when what follows it (`rest`, digits) says so. */
function rounded(kept: string, rest: string): string {
  const number = BigInt(kept === '' ? '0' : kept);
  const isUp =
    rest[0] !== undefined &&
    (rest[0] > '5' || (rest[0] === '5' && (/[1-9]/.test(rest.slice(1)) || number % 2n === 1n)));
  return (isUp ? number + 1n : number).toString();
}

/** printf's "%.<digits>f". */
export function fixed(value: number, digits: number): string {
  if (!Number.isFinite(value)) return nonFinite(value);
  const [whole, fraction] = exact(Math.abs(value));
  const text = rounded(whole + fraction.slice(0, digits).padEnd(digits, '0'), fraction.slice(digits));
  const padded = text.padStart(digits + 1, '0');
  const point = padded.length - digits;
  const sign = value < 0 || Object.is(value, -0) ? '-' : '';
  return sign + padded.slice(0, point) + (digits === 0 ? '' : `.${padded.slice(point)}`);
}

/** printf's "%.<digits>g": so many significant digits, no zeroes at the end, with an exponent where that is shorter. */
export function general(value: number, digits: number): string {
  if (!Number.isFinite(value)) return nonFinite(value);
  const sign = value < 0 || Object.is(value, -0) ? '-' : '';
  if (value === 0) return `${sign}0`;
  const [whole, fraction] = exact(Math.abs(value));
  const all = whole + fraction;
  const first = all.search(/[1-9]/);
  if (first < 0) return `${sign}0`;
  let exponent = whole.length - 1 - first;
  let text = rounded(all.slice(first, first + digits).padEnd(digits, '0'), all.slice(first + digits));
  if (text.length > digits) {
    text = text.slice(0, digits);
    exponent++;
  }
  if (exponent < -4 || exponent >= digits) {
    const size = String(Math.abs(exponent)).padStart(2, '0');
    return `${sign}${withoutZeroes(`${text[0]}.${text.slice(1)}`)}e${exponent < 0 ? '-' : '+'}${size}`;
  }
  if (exponent < 0) return `${sign}${withoutZeroes(`0.${'0'.repeat(-exponent - 1)}${text}`)}`;
  return `${sign}${withoutZeroes(`${text.slice(0, exponent + 1)}.${text.slice(exponent + 1)}`)}`;
}

/** `text` has a point. */
function withoutZeroes(text: string): string {
  return text.replace(/\.?0*$/, '');
}

function nonFinite(value: number): string {
  return Number.isNaN(value) ? 'nan' : value < 0 ? '-inf' : 'inf';
}
