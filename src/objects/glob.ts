/**
 * Shell patterns as fnmatch(3) without flags reads them: `*`, `?`, `[...]` with ranges and negation, and `\` for the
 * literal next character. Slashes and leading dots are not special.
 *
 * The matcher backtracks to the last `*` only, so that its time is bounded by the product of both lengths: patterns
 * and identities come from users and peers.
 */

type Element =
  | { readonly star: true }
  | { readonly star: false; readonly matches: (character: string) => boolean };

/** Reads the bracket expression that starts at `start` ('['); null when it is not closed. */
function parseBracket(pattern: readonly string[], start: number): { element: Element; next: number } | null {
  let at = start + 1;
  const negated = pattern[at] === '!' || pattern[at] === '^';
  if (negated) at++;
  const ranges: (readonly [string, string])[] = [];
  // A ']' right after the opening (or the negation) is an ordinary member.
  for (let first = true; at < pattern.length && (first || pattern[at] !== ']'); first = false) {
    if (pattern[at] === '\\' && at + 1 < pattern.length) at++;
    const low = pattern[at++] ?? '';
    if (pattern[at] === '-' && at + 1 < pattern.length && pattern[at + 1] !== ']') {
      at++;
      if (pattern[at] === '\\' && at + 1 < pattern.length) at++;
      ranges.push([low, pattern[at++] ?? '']);
    } else {
      ranges.push([low, low]);
    }
  }
  if (at >= pattern.length) return null;
  const matches = (character: string): boolean =>
    ranges.some(([low, high]) => low <= character && character <= high) !== negated;
  return { element: { star: false, matches }, next: at + 1 };
}

function parsePattern(text: string): Element[] {
  const pattern = [...text];
  const elements: Element[] = [];
  for (let at = 0; at < pattern.length; ) {
    let character = pattern[at] ?? '';
    if (character === '*') {
      if (elements.at(-1)?.star !== true) elements.push({ star: true });
      at++;
      continue;
    }
    if (character === '?') {
      elements.push({ star: false, matches: () => true });
      at++;
      continue;
    }
    const bracket = character === '[' ? parseBracket(pattern, at) : null;
    if (bracket !== null) {
      elements.push(bracket.element);
      at = bracket.next;
      continue;
    }
    if (character === '\\' && at + 1 < pattern.length) character = pattern[++at] ?? '';
    elements.push({ star: false, matches: (candidate) => candidate === character });
    at++;
  }
  return elements;
}

/** Whether the whole of `text` matches `pattern`. */
export function globMatch(pattern: string, text: string): boolean {
  const elements = parsePattern(pattern);
  const characters = [...text];
  let element = 0;
  let at = 0;
  let starElement = -1;
  let starAt = 0;
  while (at < characters.length) {
    const current = elements[element];
    if (current?.star === true) {
      starElement = element++;
      starAt = at;
    } else if (current?.matches(characters[at] ?? '') === true) {
      element++;
      at++;
    } else if (starElement >= 0) {
      element = starElement + 1;
      at = ++starAt;
    } else {
      return false;
    }
  }
  while (elements[element]?.star === true) element++;
  return element === elements.length;
}
