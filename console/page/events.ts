/** The events as they come, newest first. */

import type { QmpEvent } from '../../client/events.ts';
import { formatTime, shown } from '../data/format.ts';
import { byId, h } from './dom.ts';

/** Events kept; a daemon may send thousands. */
const MAX_EVENTS = 200;

function entryOf({ name, data, timeMs }: QmpEvent): HTMLElement {
  const values = Object.entries<unknown>({ ...data });
  const brief = values
    .map(([key, value]) => `${key}: ${typeof value === 'object' ? JSON.stringify(value) : String(value)}`)
    .join(', ');
  return h(
    'li',
    { class: `event${/ERROR|CORRUPT/.test(name) ? ' event-bad' : ''}` },
    h(
      'details',
      {},
      h(
        'summary',
        {},
        h('time', {}, formatTime(timeMs)),
        h('span', { class: 'event-name' }, shown(name)),
        h('bdi', { class: 'event-brief' }, shown(brief)),
      ),
      h('pre', { tabindex: 0 }, shown(JSON.stringify(data, null, 2)).replaceAll('<U+000A>', '\n')),
    ),
  );
}

/** Shows events; those that come within a frame are added together. */
export function createEventList(): (event: QmpEvent) => void {
  const list = byId('event-list');
  const empty = byId('events-empty');
  const filter = byId('event-filter') as HTMLInputElement;
  const clear = byId('event-clear');
  let kept: readonly QmpEvent[] = [];
  let waiting: QmpEvent[] = [];

  const wanted = (event: QmpEvent): boolean => {
    const text = filter.value.trim().toLowerCase();
    return text === '' || `${event.name} ${JSON.stringify(event.data)}`.toLowerCase().includes(text);
  };
  const tellEmpty = (): void => {
    empty.hidden = list.childElementCount > 0;
    empty.textContent =
      kept.length === 0 ? 'Nothing has happened since this page was opened.' : 'No event fits the filter.';
  };
  const flush = (): void => {
    const fresh = waiting.slice(-MAX_EVENTS);
    waiting = [];
    kept = [...kept, ...fresh].slice(-MAX_EVENTS);
    list.prepend(...fresh.filter(wanted).map(entryOf).reverse());
    while (list.childElementCount > MAX_EVENTS) list.lastElementChild?.remove();
    tellEmpty();
  };
  filter.addEventListener('input', () => {
    list.replaceChildren(...kept.filter(wanted).map(entryOf).reverse());
    tellEmpty();
  });
  clear.addEventListener('click', () => {
    kept = [];
    list.replaceChildren();
    tellEmpty();
  });
  tellEmpty();
  return (event) => {
    // A hidden page has no frames: what would not be kept anyway goes.
    if (waiting.length >= 2 * MAX_EVENTS) waiting = waiting.slice(-MAX_EVENTS);
    waiting.push(event);
    if (waiting.length === 1) requestAnimationFrame(flush);
  };
}
