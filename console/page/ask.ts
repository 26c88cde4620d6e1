/** Questions before something is taken away. */

import { h } from './dom.ts';

/** Asks; true: go on. Escape is no. */
export function ask(title: string, text: string, verb: string): Promise<boolean> {
  const go = h('button', { type: 'submit', class: 'danger', value: 'go' }, verb);
  const dialog = h(
    'dialog',
    { class: 'ask', 'aria-label': title },
    h(
      'form',
      { method: 'dialog' },
      h('h2', {}, title),
      h('p', {}, text),
      h('div', { class: 'dialog-buttons' }, h('button', { type: 'submit', value: '' }, 'Keep'), go),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(dialog.returnValue === 'go');
    });
  });
}
