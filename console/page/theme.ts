/** Light and dark: as the system has it, or as chosen here. Styles use light-dark(); drawings ask for colours. */

import { byId, setText } from './dom.ts';

const CHOICES = ['auto', 'light', 'dark'] as const;
type Choice = (typeof CHOICES)[number];

const KEY = 'qblockd-theme';

/** Storage may be forbidden: then the choice lasts as long as the page. */
function remembered(): Choice {
  try {
    return CHOICES.find((choice) => choice === localStorage.getItem(KEY)) ?? 'auto';
  } catch {
    return 'auto';
  }
}

function remember(choice: Choice): void {
  try {
    localStorage.setItem(KEY, choice);
  } catch {
    // as above
  }
}

/** Lets the button in the header choose; `changed` is called when colours are others. */
export function startTheme(changed: () => void): void {
  const button = byId('theme');
  let choice = remembered();
  const apply = (): void => {
    document.documentElement.dataset.theme = choice;
    setText(button, { auto: 'Auto', light: 'Light', dark: 'Dark' }[choice]);
    button.setAttribute('aria-label', `Colours: ${choice}`);
  };
  apply();
  button.addEventListener('click', () => {
    choice = CHOICES[(CHOICES.indexOf(choice) + 1) % CHOICES.length] ?? 'auto';
    remember(choice);
    apply();
    changed();
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', changed);
}

/** The colour that a class of the style sheet gives to text now. */
export function colorOf(className: string): string {
  const probe = document.createElement('span');
  probe.className = className;
  document.body.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
