/** Fields of one value each: text, numbers, choices. What lies inside others is composed.ts. */

import { FORM_TYPES, type FormUse } from '../../schema/generated/forms.ts';
import { formatBytes, parseWhole } from '../data/format.ts';
import { fill, freshId, h } from '../page/dom.ts';

/** What was typed cannot be sent; `element` is where. */
export class FieldError extends Error {
  readonly element: HTMLElement;

  constructor(message: string, element: HTMLElement) {
    super(message);
    this.element = element;
  }
}

export interface Field {
  readonly element: HTMLElement;
  /** What the label belongs to; null: the field has a legend of its own. */
  readonly labelled: HTMLElement | null;
  /** The value to send; undefined: it is left out. Throws FieldError. */
  read(): unknown;
}

export interface FieldOptions {
  /** Name of the member the value is for. */
  readonly name: string;
  readonly optional: boolean;
  readonly initial: unknown;
  /** The list of names that fit (an element's id); null: none. */
  readonly suggestions: string | null;
  /** Something was changed. */
  readonly changed: () => void;
}

function textBox(options: FieldOptions, more: Readonly<Record<string, unknown>> = {}): HTMLInputElement {
  const { initial, suggestions, changed } = options;
  return h('input', {
    ...{ type: 'text', id: freshId(), autocomplete: 'off', autocapitalize: 'off', spellcheck: 'false' },
    ...(typeof initial === 'string' || typeof initial === 'number' ? { value: initial } : {}),
    ...(suggestions !== null && { list: suggestions }),
    ...more,
    on: { input: changed },
  });
}

function textField(options: FieldOptions): Field {
  const secret = /^(password|secret|key|data)$/.test(options.name);
  const input = textBox(options, { dir: 'auto', ...(secret && { type: 'password' }) });
  const read = (): unknown => (input.value === '' && options.optional ? undefined : input.value);
  return { element: input, labelled: input, read };
}

function wholeField(options: FieldOptions): Field {
  const input = textBox(options, { inputmode: 'text', class: 'number' });
  const hint = h('output', { class: 'hint' });
  const update = (): void => {
    const value = parseWhole(input.value);
    fill(hint, value !== null && Math.abs(value) >= 1024 ? `${value} = ${formatBytes(value)}` : '');
  };
  input.addEventListener('input', update);
  update();
  const read = (): unknown => {
    if (input.value.trim() === '' && options.optional) return undefined;
    const value = parseWhole(input.value);
    if (value === null)
      throw new FieldError(`${options.name}: a whole number is wanted, such as 512 or 10G`, input);
    return value;
  };
  return { element: h('span', { class: 'with-hint' }, input, hint), labelled: input, read };
}

function numberField(options: FieldOptions): Field {
  const input = textBox(options, { inputmode: 'decimal', class: 'number' });
  const read = (): unknown => {
    if (input.value.trim() === '' && options.optional) return undefined;
    const value = Number(input.value);
    if (input.value.trim() === '' || !Number.isFinite(value))
      throw new FieldError(`${options.name}: a number is wanted`, input);
    return value;
  };
  return { element: input, labelled: input, read };
}

function anyField(options: FieldOptions): Field {
  const input = textBox(options, { placeholder: 'JSON' });
  const read = (): unknown => {
    if (input.value.trim() === '' && options.optional) return undefined;
    try {
      return JSON.parse(input.value);
    } catch {
      throw new FieldError(`${options.name}: JSON is wanted; texts stand in double quotes`, input);
    }
  };
  return { element: input, labelled: input, read };
}

/** A choice among values that are shown by name. `about` explains the chosen one. */
function choiceField(
  options: FieldOptions,
  values: readonly { readonly shown: string; readonly value: unknown; readonly about: string }[],
): Field {
  const all = options.optional ? [{ shown: '(default)', value: undefined, about: '' }, ...values] : values;
  const select = h(
    'select',
    { id: freshId(), on: { change: options.changed } },
    ...all.map(({ shown }, index) => h('option', { value: index }, shown)),
  );
  const hint = h('output', { class: 'hint' });
  const initial = all.findIndex(({ value }) => value === options.initial);
  if (initial >= 0) select.selectedIndex = initial;
  const update = (): void => fill(hint, all[select.selectedIndex]?.about ?? '');
  select.addEventListener('change', update);
  update();
  const read = (): unknown => all[select.selectedIndex]?.value;
  return { element: h('span', { class: 'with-hint' }, select, hint), labelled: select, read };
}

function isWhole(use: FormUse): boolean {
  return /^u?int\d+$/.test(use);
}

/** The field for a use that has nothing inside; null for those that have. */
export function createValueField(use: FormUse, options: FieldOptions): Field | null {
  if (use === 'str') return textField(options);
  if (isWhole(use)) return wholeField(options);
  if (use === 'number') return numberField(options);
  if (use === 'any') return anyField(options);
  if (use === 'null') {
    return { element: h('span', { class: 'hint' }, 'none'), labelled: null, read: () => null };
  }
  if (use === 'bool') {
    return choiceField(options, [
      { shown: 'yes', value: true, about: '' },
      { shown: 'no', value: false, about: '' },
    ]);
  }
  const type = use.startsWith('@') ? FORM_TYPES[use.slice(1)] : undefined;
  if (type?.kind !== 'enum') return null;
  return choiceField(
    options,
    type.values.map(([name, about]) => ({ shown: name, value: name, about })),
  );
}
