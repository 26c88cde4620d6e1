/**
 * The QMP prompt: lines as in qblock-shell (`blockdev-add driver=null-co node-name=n`), or commands in JSON. Tab and the
 * arrows complete, arrows in an empty list go through what was typed before.
 */

import type { Client } from '../../client/client.ts';
import { QmpError } from '../../client/errors.ts';
import { createCompleter } from '../../client/prompt/completion.ts';
import { LineError, parseLine } from '../../client/prompt/words.ts';
import { shown } from '../data/format.ts';
import { byId, fill, h } from '../page/dom.ts';

/** Answers that stay on the page. */
const MAX_ENTRIES = 50;
const MAX_HISTORY = 200;
const MAX_SUGGESTIONS = 100;
/** An answer longer than this is cut: a page of megabytes is of no use to anybody. */
const MAX_ANSWER = 100_000;

function printed(value: unknown): string {
  const text = JSON.stringify(value, null, 2);
  const cut =
    text.length > MAX_ANSWER
      ? `${text.slice(0, MAX_ANSWER)}\n… ${text.length - MAX_ANSWER} characters more`
      : text;
  return cut.split('\n').map(shown).join('\n');
}

export function startPrompt(client: Client, hurry: () => void): void {
  const form = byId('prompt-form') as HTMLFormElement;
  const input = byId('prompt-input') as HTMLInputElement;
  const options = byId('prompt-options');
  const log = byId('prompt-log');
  const completer = createCompleter(client);
  const history: string[] = [];
  let at = 0;
  let draft = '';
  let candidates: readonly string[] = [];
  let begun = '';
  let active = -1;
  let asked = 0;

  const close = (): void => {
    candidates = [];
    active = -1;
    options.hidden = true;
    input.setAttribute('aria-expanded', 'false');
    input.removeAttribute('aria-activedescendant');
  };

  const activate = (index: number): void => {
    active = index;
    for (const [place, option] of [...options.children].entries())
      option.setAttribute('aria-selected', String(place === index));
    const option = options.children[index];
    if (option === undefined) input.removeAttribute('aria-activedescendant');
    else {
      input.setAttribute('aria-activedescendant', option.id);
      option.scrollIntoView({ block: 'nearest' });
    }
  };

  const take = (candidate: string): void => {
    input.value = input.value.slice(0, input.value.length - begun.length) + candidate;
    close();
    void suggest();
  };

  const suggest = async (): Promise<void> => {
    asked += 1;
    const mine = asked;
    const line = input.value;
    if (line.trimStart().startsWith('{') || line.trim() === '') {
      close();
      return;
    }
    const [found, end] = await completer.complete(line);
    if (mine !== asked || input.value !== line) return;
    // What is complete already needs no list.
    candidates = found.filter((name) => name.trimEnd() !== end).slice(0, MAX_SUGGESTIONS);
    begun = end;
    active = -1;
    if (candidates.length === 0 || document.activeElement !== input) {
      close();
      return;
    }
    fill(
      options,
      ...candidates.map((candidate, index) =>
        h(
          'li',
          {
            ...{ role: 'option', id: `prompt-option-${index}`, 'aria-selected': 'false' },
            on: {
              pointerdown: (event) => {
                event.preventDefault();
                take(candidate);
              },
            },
          },
          shown(candidate.trimEnd()),
        ),
      ),
    );
    options.hidden = false;
    input.setAttribute('aria-expanded', 'true');
  };

  const answer = (line: string, kind: 'good' | 'bad', text: string): void => {
    const entry = h(
      'li',
      { class: `answer answer-${kind}` },
      h('div', { class: 'answer-line' }, h('bdi', {}, shown(line))),
      h('pre', { tabindex: 0 }, text),
    );
    log.append(entry);
    while (log.childElementCount > MAX_ENTRIES) log.firstElementChild?.remove();
    log.scrollTop = entry.offsetTop - 8;
  };

  const run = async (line: string): Promise<void> => {
    try {
      const command = parseLine(line);
      if (command === null) return;
      const hasArguments = Object.keys(command.args).length > 0;
      const result = await client.execute(
        command.name as never,
        (hasArguments ? command.args : undefined) as never,
      );
      answer(line, 'good', printed(result));
    } catch (error) {
      if (error instanceof QmpError) answer(line, 'bad', `${error.errorClass}: ${shown(error.message)}`);
      else if (error instanceof LineError) answer(line, 'bad', shown(error.message));
      else answer(line, 'bad', error instanceof Error ? shown(error.message) : String(error));
    }
    hurry();
  };

  const recall = (step: number): void => {
    if (at === history.length) draft = input.value;
    at = Math.min(history.length, Math.max(0, at + step));
    input.value = history[at] ?? draft;
    input.setSelectionRange(input.value.length, input.value.length);
  };

  const onKey = (event: KeyboardEvent): void => {
    const open = candidates.length > 0;
    const [only] = candidates;
    if (event.key === 'Tab' && !event.shiftKey && open) {
      event.preventDefault();
      take(candidates[active] ?? commonStart(candidates, begun) ?? only ?? begun);
    } else if (event.key === 'Enter' && open && active >= 0) {
      event.preventDefault();
      take(candidates[active] ?? begun);
    } else if (event.key === 'Escape' && open) {
      event.preventDefault();
      close();
    } else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault();
      const step = event.key === 'ArrowDown' ? 1 : -1;
      if (open)
        activate((active + step + (active < 0 && step < 0 ? 1 : 0) + candidates.length) % candidates.length);
      else recall(step);
    }
  };

  input.addEventListener('input', () => void suggest());
  input.addEventListener('keydown', onKey);
  input.addEventListener('blur', close);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const line = input.value.trim();
    if (line === '') return;
    if (history.at(-1) !== line) history.push(line);
    if (history.length > MAX_HISTORY) history.shift();
    at = history.length;
    input.value = '';
    asked += 1;
    close();
    void run(line);
  });
}

/** What all candidates begin with, where that is more than what was typed; null: nothing more. */
function commonStart(candidates: readonly string[], begun: string): string | null {
  const [first = ''] = candidates;
  let length = first.length;
  for (const candidate of candidates) {
    let same = 0;
    while (same < length && candidate[same] === first[same]) same += 1;
    length = same;
  }
  return length > begun.length ? first.slice(0, length) : null;
}
