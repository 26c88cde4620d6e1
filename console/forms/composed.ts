/**
 * Fields made of others, from the types of the schema: objects with the branch that their tag has chosen, lists, and
 * values of one kind or another. What may be left out is made when it is asked for: types refer to themselves.
 */

import { FORM_TYPES, type FormMember, type FormType, type FormUse } from '../../schema/generated/forms.ts';
import { fill, freshId, h } from '../page/dom.ts';
import { createValueField, type Field, FieldError, type FieldOptions } from './values.ts';

type ObjectType = Extract<FormType, { readonly kind: 'object' }>;

export interface FormContext {
  /** The list of names for a member (an element's id); null: none. */
  readonly suggestionsFor: (member: string) => string | null;
  readonly changed: () => void;
}

/** What a tag is where nothing was chosen yet. */
const FIRST_CHOICES: Readonly<Record<string, string>> = {
  BlockdevOptions: 'file',
  BlockExportOptions: 'nbd',
  SocketAddress: 'unix',
  SocketAddressLegacy: 'unix',
  BlockdevCreateOptions: 'qcow2',
};

/** How the kinds of a value are called, where their names in the schema would say little. */
const KIND_NAMES: Readonly<Record<string, string>> = {
  definition: 'defined here',
  reference: 'an existing node',
  local: 'by name',
  external: 'of a node',
};

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** A field for any use. `depth` is how far inside it lies. */
function createField(use: FormUse, options: FieldOptions, context: FormContext, depth: number): Field {
  const value = createValueField(use, options);
  if (value !== null) return value;
  if (use.startsWith('[')) return createListField(use.slice(1, -1), options, context, depth);
  const type = FORM_TYPES[use.slice(1)];
  if (type?.kind === 'alternate') return createAlternateField(type.choices, options, context, depth);
  if (type?.kind !== 'object') throw new Error(`The schema has no type ${use}`);
  return createObjectField(use.slice(1), type, options.initial, context, depth);
}

// ---- members ---------------------------------------------------------------------------------------------------

interface MemberField {
  readonly member: FormMember;
  /** It stands in front, not behind "more". */
  readonly isFirst: boolean;
  readonly element: HTMLElement;
  read(): unknown;
}

function isSimple(use: FormUse): boolean {
  return !use.startsWith('[') && !(use.startsWith('@') && FORM_TYPES[use.slice(1)]?.kind !== 'enum');
}

/** Label, field and text of a member. */
function createMember(
  member: FormMember,
  initial: unknown,
  context: FormContext,
  depth: number,
  isFirst = true,
): MemberField {
  const optional = member.optional === true;
  const options: FieldOptions = {
    name: member.name,
    optional,
    initial,
    suggestions: member.use === 'str' || !isSimple(member.use) ? context.suggestionsFor(member.name) : null,
    changed: context.changed,
  };
  const about = h('p', { class: 'about', id: freshId() }, member.about);
  if (isSimple(member.use)) {
    const field = createField(member.use, options, context, depth);
    field.labelled?.setAttribute('aria-describedby', about.id);
    if (!optional) field.labelled?.setAttribute('aria-required', 'true');
    const label = h('label', { for: field.labelled?.id ?? null }, member.name);
    return {
      member,
      isFirst,
      element: h('div', { class: 'member' }, label, field.element, about),
      read: field.read,
    };
  }
  return { member, isFirst, ...createInnerMember(member, options, about, context, depth) };
}

/** A member that has something inside: shown at once where it is needed, else when it is asked for. */
function createInnerMember(
  member: FormMember,
  options: FieldOptions,
  about: HTMLElement,
  context: FormContext,
  depth: number,
): Pick<MemberField, 'element' | 'read'> {
  let field: Field | null = null;
  const place = h('div');
  const legend = h('legend', {}, member.name);
  const toggle = h('button', { type: 'button', class: 'quiet' });
  const show = (wanted: boolean, initial: unknown): void => {
    field = wanted ? createField(member.use, { ...options, initial }, context, depth + 1) : null;
    fill(place, field?.element ?? null);
    fill(toggle, wanted ? `Leave out ${member.name}` : `Add ${member.name}`);
  };
  show(!options.optional || options.initial !== undefined, options.initial);
  toggle.addEventListener('click', () => {
    show(field === null, undefined);
    context.changed();
    const [first] = place.querySelectorAll<HTMLElement>('input, select');
    (first ?? toggle).focus();
  });
  const element = h(
    'fieldset',
    { class: 'inner', 'aria-describedby': about.id },
    legend,
    about,
    place,
    options.optional ? toggle : null,
  );
  return { element, read: () => field?.read() };
}

// ---- objects ---------------------------------------------------------------------------------------------------

/** Members of an object: those that are needed or given first, the others behind "more". */
function createMembers(
  members: readonly FormMember[],
  initial: Readonly<Record<string, unknown>>,
  context: FormContext,
  depth: number,
): { readonly element: HTMLElement; readonly fields: readonly MemberField[] } {
  const make = (member: FormMember): MemberField =>
    createMember(member, initial[member.name], context, depth, isFirst(member));
  const isFirst = ({ name, optional }: FormMember): boolean => optional !== true || name in initial;
  const first = members.filter(isFirst).map(make);
  const later = members.filter((member) => !isFirst(member));
  const fields = [...first];
  const element = h('div', { class: 'members' }, ...first.map((field) => field.element));
  if (later.length === 0) return { element, fields };
  const rest = h('div', { class: 'members' });
  const more = h(
    'details',
    { class: 'more' },
    h('summary', {}, later.length === 1 ? '1 more option' : `${later.length} more options`),
    rest,
  );
  more.addEventListener('toggle', () => {
    if (!more.open || rest.childElementCount > 0) return;
    const made = later.map(make);
    fields.push(...made);
    rest.append(...made.map((field) => field.element));
  });
  element.append(more);
  return { element, fields };
}

function readMembers(fields: readonly MemberField[]): Record<string, unknown> {
  const result: Record<string, unknown> = {};
  for (const { member, read } of fields) {
    const value = read();
    if (value !== undefined) result[member.name] = value;
  }
  return result;
}

function branchMembers(type: ObjectType, choice: unknown): readonly FormMember[] {
  const branch = FORM_TYPES[type.branches?.[String(choice)] ?? ''];
  return branch?.kind === 'object' ? branch.members : [];
}

/** The members of an object or a union. */
export function createObjectField(
  name: string,
  type: ObjectType,
  initial: unknown,
  context: FormContext,
  depth = 0,
): Field {
  const given = isRecord(initial) ? initial : {};
  const { tag } = type;
  if (tag === undefined) {
    const { element, fields } = createMembers(type.members, given, context, depth);
    return { element, labelled: null, read: () => readMembers(fields) };
  }
  const tagMember = type.members.find((member) => member.name === tag);
  if (tagMember === undefined) throw new Error(`The schema has no tag of ${name}`);
  const choices = new Set(Object.keys(type.branches ?? {}));
  const first =
    given[tag] ?? (choices.has(FIRST_CHOICES[name] ?? '') ? FIRST_CHOICES[name] : [...choices][0]);
  const place = h('div');
  let fields: readonly MemberField[] = [];
  const tagField = createMember(
    // Where the tag may be left out, there is a branch for that.
    tagMember,
    first,
    { ...context, changed: () => showBranch({}) },
    depth,
  );
  const showBranch = (values: Readonly<Record<string, unknown>>): void => {
    const kept = fields.length > 0 ? keptOf(fields) : {};
    const others = type.members.filter((member) => member.name !== tag);
    const own = branchMembers(type, tagField.read());
    const isFirst = ({ name: member, optional }: FormMember): boolean =>
      optional !== true || member in kept || member in values;
    const ordered = [...others.filter(isFirst), ...own, ...others.filter((member) => !isFirst(member))];
    const made = createMembers(ordered, { ...kept, ...values }, context, depth);
    fields = made.fields;
    fill(place, made.element);
    context.changed();
  };
  const known = Object.fromEntries(Object.entries(given).filter(([key]) => key !== tag));
  showBranch(known);
  return {
    element: h('div', { class: 'members' }, tagField.element, place),
    labelled: null,
    read: () => ({ ...readMembers([tagField]), ...readMembers(fields) }),
  };
}

/** Values typed so far, for another branch that has the same members. Those that cannot be read are lost. */
function keptOf(fields: readonly MemberField[]): Record<string, unknown> {
  const kept: Record<string, unknown> = {};
  for (const { member, read, isFirst } of fields) {
    try {
      const value = read();
      // Without a value it is kept in front all the same.
      if (value !== undefined || isFirst) kept[member.name] = value;
    } catch (error) {
      if (!(error instanceof FieldError)) throw error;
    }
  }
  return kept;
}

// ---- lists and alternates --------------------------------------------------------------------------------------

function createListField(
  element: FormUse,
  options: FieldOptions,
  context: FormContext,
  depth: number,
): Field {
  const items = new Map<HTMLElement, Field>();
  const list = h('ul', { class: 'list-items' });
  const add = (initial: unknown): void => {
    const number = items.size + 1;
    const field = createField(element, { ...options, optional: false, initial }, context, depth + 1);
    field.labelled?.setAttribute('aria-label', `${options.name}, entry ${number}`);
    const remove = h(
      'button',
      { type: 'button', class: 'quiet', 'aria-label': `Remove entry ${number} of ${options.name}` },
      '×',
    );
    const item = h('li', {}, field.element, remove);
    remove.addEventListener('click', () => {
      items.delete(item);
      item.remove();
      more.focus();
      context.changed();
    });
    items.set(item, field);
    list.append(item);
  };
  const more = h('button', { type: 'button', class: 'quiet' }, 'Add an entry');
  more.addEventListener('click', () => {
    add(undefined);
    list.lastElementChild?.querySelector<HTMLElement>('input, select')?.focus();
    context.changed();
  });
  if (Array.isArray(options.initial)) for (const value of options.initial) add(value);
  return {
    element: h('div', { class: 'list' }, list, more),
    labelled: null,
    read: () => [...items.values()].map((field) => field.read()),
  };
}

/** Which kind a value that is there is of. */
function kindOf(choices: readonly (readonly [string, FormUse])[], initial: unknown): number {
  const fits = (use: FormUse): boolean => {
    if (initial === null) return use === 'null';
    if (typeof initial === 'string') return use === 'str' || FORM_TYPES[use.slice(1)]?.kind === 'enum';
    if (typeof initial === 'boolean') return use === 'bool';
    if (typeof initial === 'number') return /int|number/.test(use);
    if (Array.isArray(initial)) return use.startsWith('[');
    return FORM_TYPES[use.slice(1)]?.kind === 'object';
  };
  return Math.max(
    0,
    choices.findIndex(([, use]) => fits(use)),
  );
}

function createAlternateField(
  choices: readonly (readonly [string, FormUse])[],
  options: FieldOptions,
  context: FormContext,
  depth: number,
): Field {
  const select = h(
    'select',
    { 'aria-label': `${options.name}: what kind` },
    ...choices.map(([name], index) => h('option', { value: index }, KIND_NAMES[name] ?? name)),
  );
  select.selectedIndex = kindOf(choices, options.initial);
  const place = h('div');
  let field: Field | null = null;
  const show = (initial: unknown): void => {
    const [, use = 'str'] = choices[select.selectedIndex] ?? [];
    field = createField(use, { ...options, optional: false, initial }, context, depth);
    field.labelled?.setAttribute('aria-label', options.name);
    fill(place, field.element);
  };
  show(options.initial);
  select.addEventListener('change', () => {
    show(undefined);
    context.changed();
  });
  return {
    element: h('div', { class: 'alternate' }, select, place),
    labelled: null,
    read: () => field?.read(),
  };
}
