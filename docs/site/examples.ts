/** What examples show of each command and event: exchanges, and errors. */

import { blocksOf, type Step, stepsOf } from './document.ts';

export interface ErrorShown {
  readonly errorClass: string;
  readonly text: string;
  /** The command as it was said. */
  readonly said: string;
}

export interface Examples {
  /** By command: one or two exchanges that succeed, as a qmp block has them. */
  readonly exchanges: ReadonlyMap<string, readonly string[]>;
  readonly errors: ReadonlyMap<string, readonly ErrorShown[]>;
  /** By event: how it looks. */
  readonly events: ReadonlyMap<string, string>;
}

const MAX_EXCHANGES = 2;

function asShown({ from, text }: Step): string {
  return `${from === 'client' ? '->' : '<-'} ${text}`;
}

/** Collects from the documents given. */
export function collectExamples(documents: readonly string[]): Examples {
  const exchanges = new Map<string, string[]>();
  const errors = new Map<string, ErrorShown[]>();
  const events = new Map<string, string>();
  for (const document of documents) {
    const blocks = blocksOf(document).filter(({ language }) => language === 'qmp');
    for (const steps of blocks.map((block) => stepsOf(block.code)))
      collect(steps, { exchanges, errors, events });
  }
  return { exchanges, errors, events };
}

function collect(
  steps: readonly Step[],
  found: {
    readonly exchanges: Map<string, string[]>;
    readonly errors: Map<string, ErrorShown[]>;
    readonly events: Map<string, string>;
  },
): void {
  for (const [index, step] of steps.entries()) {
    const { message } = step;
    if (typeof message.event === 'string' && !found.events.has(message.event))
      found.events.set(message.event, asShown(step));
    const answer = steps[index + 1];
    if (typeof message.execute !== 'string' || answer === undefined) continue;
    const name = message.execute;
    if ('error' in answer.message) {
      const { class: errorClass, desc } = answer.message.error as {
        readonly class: string;
        readonly desc: string;
      };
      const known = found.errors.get(name) ?? [];
      if (!known.some(({ text }) => text === desc)) known.push({ errorClass, text: desc, said: step.text });
      found.errors.set(name, known);
      continue;
    }
    const known = found.exchanges.get(name) ?? [];
    if (known.length < MAX_EXCHANGES) known.push(`${asShown(step)}\n${asShown(answer)}`);
    found.exchanges.set(name, known);
  }
}
