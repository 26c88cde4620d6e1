/**
 * The tools' older option syntax: flat `key=value` pairs, as `-o`, `-l` and `--image-opts` take them. ",," stands for
 * a comma in a value. A key alone means on, with "no" in front off; both are deprecated, and said to be.
 */

export interface FlatPair {
  readonly key: string;
  readonly value: string;
}

export interface FlatOptions {
  readonly pairs: readonly FlatPair[];
  /** `help` or `?` stood alone among the pairs. */
  readonly help: boolean;
}

/** Reads pairs; `impliedKey` is the key of a first word without "=", if that may be. `warn` takes deprecations. */
export function parseFlatOptions(
  text: string,
  impliedKey: string | null,
  warn: (message: string) => void,
): FlatOptions {
  const pairs: FlatPair[] = [];
  let help = false;
  for (const [index, part] of splitPairs(text).entries()) {
    const equals = part.indexOf('=');
    if (equals >= 0) pairs.push({ key: part.slice(0, equals), value: withCommas(part.slice(equals + 1)) });
    else if (part === 'help' || part === '?') help = true;
    else if (index === 0 && impliedKey !== null) pairs.push({ key: impliedKey, value: withCommas(part) });
    else pairs.push(shortForm(part, warn));
  }
  return { pairs, help };
}

/** Splits at single commas; pairs of commas stay. */
function splitPairs(text: string): string[] {
  const parts: string[] = [];
  let start = 0;
  for (let at = 0; at < text.length; at++) {
    if (text[at] !== ',') continue;
    if (text[at + 1] === ',') {
      at++;
      continue;
    }
    parts.push(text.slice(start, at));
    start = at + 1;
  }
  if (start < text.length) parts.push(text.slice(start));
  return parts;
}

function withCommas(value: string): string {
  return value.replaceAll(',,', ',');
}

function shortForm(name: string, warn: (message: string) => void): FlatPair {
  const isNegative = name.startsWith('no');
  const pair = isNegative ? { key: name.slice(2), value: 'off' } : { key: name, value: 'on' };
  warn(`short-form boolean option '${name}' deprecated\nPlease use ${pair.key}=${pair.value} instead`);
  return pair;
}
