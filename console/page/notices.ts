/** Short messages above the page: what failed, and what was done. */

import { shown } from '../data/format.ts';
import { byId, h } from './dom.ts';

/** How long what was done is told. What failed stays until it is put away. */
const DONE_MS = 4000;
const MAX_NOTICES = 4;

function show(kind: 'error' | 'done', text: string): void {
  const region = byId('notices');
  const message = shown(text);
  const same = [...region.children].find((notice) => notice.firstChild?.textContent === message);
  same?.remove();
  const close = h('button', { type: 'button', class: 'notice-close', 'aria-label': 'Put away' }, '×');
  const notice = h(
    'div',
    { class: `notice notice-${kind}`, role: kind === 'error' ? 'alert' : 'status' },
    h('span', {}, message),
    close,
  );
  close.addEventListener('click', () => notice.remove());
  region.append(notice);
  while (region.children.length > MAX_NOTICES) region.firstElementChild?.remove();
  if (kind === 'done') setTimeout(() => notice.remove(), DONE_MS);
}

export function tellError(error: unknown): void {
  show('error', error instanceof Error ? error.message : String(error));
}

export function tellDone(text: string): void {
  show('done', text);
}
