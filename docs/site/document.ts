/**
 * Documents in Markdown as data: their fenced blocks, and what is said over QMP in blocks of the language "qmp". The
 * site is made from that, and the tests run it.
 *
 * A qmp block holds messages, one after the other: "-> " before what the client says, "<- " before what the daemon
 * says; a message may go on in further lines. In what the daemon says, "..." as a value stands for any value, as a
 * member for any further members, and at the end of a list for any further elements. Events have a timestamp, too, which documents leave out.
 */

export interface Block {
  /** First word behind the fence. */
  readonly language: string;
  /** Words behind the language. */
  readonly words: readonly string[];
  readonly code: string;
  /** Line of the fence, from 1. */
  readonly line: number;
}

export interface Step {
  readonly from: 'client' | 'daemon';
  /** As it stands, without the arrow. */
  readonly text: string;
  readonly message: Readonly<Record<string, unknown>>;
}

/** The fenced blocks of a document, in order. */
export function blocksOf(document: string): Block[] {
  const blocks: Block[] = [];
  let open: { language: string; words: string[]; code: string[]; line: number } | null = null;
  for (const [index, line] of document.split('\n').entries()) {
    const fence = /^```(.*)$/.exec(line);
    if (fence === null) {
      open?.code.push(line);
    } else if (open === null) {
      const [language = '', ...words] = (fence[1] ?? '').trim().split(/\s+/);
      open = { language, words, code: [], line: index + 1 };
    } else {
      blocks.push({ ...open, code: `${open.code.join('\n')}\n` });
      open = null;
    }
  }
  if (open !== null) throw new Error(`line ${open.line}: the block does not end`);
  return blocks;
}

/** The messages of a qmp block; throws where one is no JSON object. */
export function stepsOf(code: string): Step[] {
  const steps: Step[] = [];
  for (const part of code.split(/^(?=-> |<- )/m)) {
    const arrow = /^(->|<-) ([\s\S]*)$/.exec(part);
    if (arrow === null) {
      if (part.trim() !== '') throw new Error(`neither said nor answered: ${part}`);
      continue;
    }
    const text = (arrow[2] ?? '').trimEnd();
    steps.push({ from: arrow[1] === '->' ? 'client' : 'daemon', text, message: JSON.parse(text) });
  }
  return steps;
}

/** Whether `actual` is what a document says; otherwise where it is not. */
export function difference(expected: unknown, actual: unknown, place = ''): string | null {
  if (expected === '...') return null;
  if (Array.isArray(expected)) {
    if (!Array.isArray(actual)) return `${place} is no list`;
    const isOpen = expected.at(-1) === '...';
    const wanted = isOpen ? expected.slice(0, -1) : expected;
    if (actual.length < wanted.length || (!isOpen && actual.length > wanted.length))
      return `${place} has ${actual.length} elements`;
    for (const [index, element] of wanted.entries()) {
      const found = difference(element, actual[index], `${place}[${index}]`);
      if (found !== null) return found;
    }
    return null;
  }
  if (typeof expected === 'object' && expected !== null) {
    if (typeof actual !== 'object' || actual === null) return `${place} is no object`;
    const members = actual as Readonly<Record<string, unknown>>;
    for (const [name, value] of Object.entries(expected)) {
      if (name === '...') continue;
      if (!Object.hasOwn(members, name)) return `${place}.${name} is missing`;
      const found = difference(value, members[name], `${place}.${name}`);
      if (found !== null) return found;
    }
    if (Object.hasOwn(expected, '...')) return null;
    const more = Object.keys(members).find((name) => name !== 'timestamp' && !Object.hasOwn(expected, name));
    return more === undefined ? null : `${place}.${more} is not in the document`;
  }
  return Object.is(expected, actual)
    ? null
    : `${place} is ${JSON.stringify(actual)}, not ${JSON.stringify(expected)}`;
}
