/** The jobs: how far each is, how fast, and what can be done to it in the state it is in. */

import type { Client } from '../../client/client.ts';
import type { BlockJobInfo, JobInfo, JobStatus } from '../../schema/generated/types.ts';
import type { Snapshot } from '../data/feed.ts';
import { formatBytes, formatDuration, parseWhole, shown } from '../data/format.ts';
import { ask } from '../page/ask.ts';
import { byId, freshId, h, setText } from '../page/dom.ts';
import { tellDone, tellError } from '../page/notices.ts';

type Verb = 'pause' | 'resume' | 'complete' | 'finalize' | 'cancel' | 'dismiss';

const ACTIVE: readonly JobStatus[] = ['created', 'running', 'paused', 'ready', 'standby'];

/** Which verbs a state takes. Pausing what is paused is left out, though a job would take it. */
const VERBS: Readonly<Record<Verb, readonly JobStatus[]>> = {
  pause: ['created', 'running', 'ready'],
  resume: ['paused', 'standby'],
  complete: ['ready'],
  finalize: ['pending'],
  cancel: [...ACTIVE, 'waiting', 'pending'],
  dismiss: ['concluded'],
};

const LABELS: Readonly<Record<Verb, string>> = {
  pause: 'Pause',
  resume: 'Resume',
  complete: 'Complete',
  finalize: 'Finalize',
  cancel: 'Cancel …',
  dismiss: 'Dismiss',
};

/** How far a job was at a moment; from two of them comes its rate. */
interface Progress {
  readonly timeMs: number;
  readonly done: number;
}

interface Card {
  readonly element: HTMLElement;
  readonly status: HTMLElement;
  readonly bar: HTMLElement;
  readonly fill: HTMLElement;
  readonly numbers: HTMLElement;
  readonly error: HTMLElement;
  readonly buttons: ReadonlyMap<Verb, HTMLButtonElement>;
  readonly speed: HTMLFormElement;
  readonly speedInput: HTMLInputElement;
  history: readonly Progress[];
}

/** Looks that the rate is taken over. */
const RATE_LOOKS = 5;

function rateOf(history: readonly Progress[]): number | null {
  const [first, last] = [history[0], history.at(-1)];
  if (first === undefined || last === undefined || last.timeMs - first.timeMs < 500) return null;
  return Math.max(0, ((last.done - first.done) * 1000) / (last.timeMs - first.timeMs));
}

function numbersOf(job: JobInfo, history: readonly Progress[]): string {
  const [done, total] = [job['current-progress'], job['total-progress']];
  const parts = [`${formatBytes(done)} of ${formatBytes(total)}`];
  const rate = job.status === 'running' ? rateOf(history) : null;
  if (rate !== null && rate > 0) {
    parts.push(`${formatBytes(Math.round(rate))}/s`);
    if (total > done) parts.push(`${formatDuration((total - done) / rate)} left`);
  }
  return parts.join(' · ');
}

export interface JobList {
  show(snapshot: Snapshot): void;
}

export function createJobList(client: Client, hurry: () => void): JobList {
  const list = byId('job-list');
  const empty = byId('jobs-empty');
  const cards = new Map<string, Card>();

  const act = async (id: string, verb: Verb): Promise<void> => {
    if (verb === 'cancel') {
      const sure = await ask(
        'Cancel the job?',
        `What the job ${shown(id)} has done so far is of no use then.`,
        'Cancel the job',
      );
      if (!sure) return;
    }
    try {
      await client.execute(`job-${verb}`, { id });
    } catch (error) {
      tellError(error);
    }
    hurry();
  };

  const setSpeed = async (id: string, text: string): Promise<void> => {
    const speed = text.trim() === '' ? 0 : parseWhole(text.replace(/\/s$/, ''));
    if (speed === null || speed < 0) {
      tellError(`Not a speed: ${text}. Bytes a second are wanted, such as 10M; 0 is no limit.`);
      return;
    }
    try {
      await client.blockJobSetSpeed({ device: id, speed });
      tellDone(
        speed === 0
          ? `The job ${id} has no limit now`
          : `The job ${id} is limited to ${formatBytes(speed)}/s`,
      );
    } catch (error) {
      tellError(error);
    }
    hurry();
  };

  const makeCard = (job: JobInfo): Card => {
    const id = job.id;
    const titleId = freshId();
    const status = h('span', { class: 'status' });
    const fill = h('span', { class: 'progress-fill' });
    const bar = h(
      'div',
      {
        class: 'progress',
        role: 'progressbar',
        'aria-labelledby': titleId,
        'aria-valuemin': 0,
        'aria-valuemax': 100,
      },
      fill,
    );
    const numbers = h('p', { class: 'job-numbers' });
    const error = h('p', { class: 'job-error', hidden: true });
    const buttons = new Map(
      (Object.keys(VERBS) as Verb[]).map((verb) => [
        verb,
        h(
          'button',
          {
            ...{ type: 'button', 'data-verb': verb, 'aria-label': `${LABELS[verb]} ${shown(id)}` },
            ...(verb === 'cancel' && { class: 'danger' }),
            on: { click: () => void act(id, verb) },
          },
          LABELS[verb],
        ),
      ]),
    );
    const speedInput = h('input', {
      ...{
        type: 'text',
        size: 6,
        inputmode: 'text',
        placeholder: 'no limit',
        autocomplete: 'off',
        spellcheck: 'false',
      },
      'aria-label': `Speed limit of ${shown(id)}, bytes a second`,
    });
    const speed = h(
      'form',
      { class: 'speed' },
      h('span', { 'aria-hidden': 'true' }, 'Limit'),
      speedInput,
      h('button', { type: 'submit', 'aria-label': `Set the speed limit of ${shown(id)}` }, 'Set'),
    );
    speed.addEventListener('submit', (event) => {
      event.preventDefault();
      void setSpeed(id, speedInput.value);
    });
    const element = h(
      'li',
      { class: 'job' },
      h(
        'div',
        { class: 'job-head' },
        h('bdi', { class: 'job-id', id: titleId }, shown(id)),
        h('span', { class: 'job-type' }, job.type),
        status,
      ),
      bar,
      numbers,
      error,
      h('div', { class: 'actions' }, ...buttons.values(), speed),
    );
    return { element, status, bar, fill, numbers, error, buttons, speed, speedInput, history: [] };
  };

  const updateCard = (card: Card, job: JobInfo, blockJob: BlockJobInfo | null, timeMs: number): void => {
    const [done, total] = [job['current-progress'], job['total-progress']];
    card.history = [...card.history.slice(1 - RATE_LOOKS), { timeMs, done }];
    setText(card.status, job.status);
    card.status.dataset.status = job.status;
    const share = total > 0 ? Math.min(1, done / total) : job.status === 'concluded' ? 1 : 0;
    const percent = String(Math.floor(share * 100));
    if (card.bar.getAttribute('aria-valuenow') !== percent) card.bar.setAttribute('aria-valuenow', percent);
    const transform = `scaleX(${share.toFixed(4)})`;
    if (card.fill.style.transform !== transform) card.fill.style.transform = transform;
    setText(card.numbers, numbersOf(job, card.history));
    card.error.hidden = job.error === undefined;
    setText(card.error, shown(job.error ?? ''));
    for (const [verb, button] of card.buttons) button.hidden = !VERBS[verb].includes(job.status);
    card.speed.hidden = blockJob === null || !ACTIVE.includes(job.status);
    const limit = blockJob === null || blockJob.speed === 0 ? 'no limit' : `${formatBytes(blockJob.speed)}/s`;
    if (card.speedInput.placeholder !== limit) card.speedInput.placeholder = limit;
  };

  return {
    show: ({ jobs, blockJobs, timeMs }) => {
      const ids = new Set(jobs.map(({ id }) => id));
      for (const [id, card] of cards) {
        if (ids.has(id)) continue;
        card.element.remove();
        cards.delete(id);
      }
      for (const job of jobs) {
        let card = cards.get(job.id);
        if (card === undefined) {
          card = makeCard(job);
          cards.set(job.id, card);
          list.append(card.element);
        }
        updateCard(card, job, blockJobs.find(({ device }) => device === job.id) ?? null, timeMs);
      }
      empty.hidden = jobs.length > 0;
    },
  };
}
