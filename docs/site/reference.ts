/** The reference of QMP: a page for each module of the schema. */

import type { Member, Model, ObjectType, TypeDefinition, TypeUse } from '../../schema/generator/model.ts';
import { useText } from '../../schema/generator/use-text.ts';
import type { Examples } from './examples.ts';
import { code, escaped, heading, inline, linkTo, type Page, table } from './html.ts';

interface Noted {
  readonly features: readonly string[];
  readonly since?: string | null;
}

/** The page of a module. */
export const modulePath = (module: string): string => `reference/${module}.html`;

/** Where a name of the schema is described; null: nowhere. */
export function placeOf(model: Model, name: string): string | null {
  const type = model.types.get(name);
  const thing =
    type !== undefined && !type.implicit
      ? type
      : (model.commands.find((command) => command.name === name) ??
        model.events.find((event) => event.name === name));
  return thing === undefined ? null : `${modulePath(thing.module)}#${name}`;
}

function notes({ features, since }: Noted): string {
  const texts = [...features, ...(typeof since === 'string' ? [`since ${since}`] : [])];
  return texts.map((text) => ` <span class="note">${escaped(text)}</span>`).join('');
}

class ReferencePage {
  readonly #model: Model;
  readonly #path: string;

  constructor(model: Model, path: string) {
    this.#model = model;
    this.#path = path;
  }

  link(name: string): string {
    const place = placeOf(this.#model, name);
    return place === null
      ? code(name)
      : `<a href="${linkTo(this.#path, place)}"><code>${escaped(name)}</code></a>`;
  }

  use(use: TypeUse): string {
    return useText(use, (name) => this.link(name));
  }

  members(members: readonly Member[]): string {
    return table(
      ['Member', 'Type', ''],
      members.map((member) => [
        `${code(member.name)}${member.optional ? '' : ' <span class="note">required</span>'}`,
        this.use(member.use),
        `${inline(member.description)}${notes(member)}`,
      ]),
    );
  }

  object(type: ObjectType): string {
    const branches = [...type.branches].filter(([, branch]) => branch !== null);
    return (
      this.members(type.members) +
      table(
        [`If ${code(type.tag ?? '')} is`, 'also the members of'],
        branches.map(([value, branch]) => [code(value), this.link(branch ?? '')]),
      )
    );
  }

  type(type: TypeDefinition): string {
    const start = `${heading(3, type.name, code(type.name))}<p>${inline(type.description)}${notes(type)}</p>\n`;
    switch (type.kind) {
      case 'enum':
        return (
          start +
          table(
            ['Value', ''],
            type.values.map((value) => [code(value.name), `${inline(value.description)}${notes(value)}`]),
          )
        );
      case 'alternate':
        return (
          start +
          table(
            ['Either', ''],
            type.choices.map(({ use, description }) => [this.use(use), inline(description)]),
          )
        );
      case 'object':
        return start + this.object(type);
    }
  }

  command(command: Model['commands'][number], examples: Examples): string {
    const { name, description, argumentType, returns, returnsDescription } = command;
    const { since } = command as Noted;
    const parts = [heading(3, name, code(name)), `<p>${inline(description)}${notes(command)}</p>\n`];
    const type = argumentType === null ? undefined : this.#model.types.get(argumentType);
    if (type === undefined) parts.push('<p>No arguments.</p>\n');
    else if (!type.implicit) parts.push(`<p>Arguments: the members of ${this.link(type.name)}.</p>\n`);
    else if (type.kind === 'object') parts.push(this.object(type));
    if (returns !== null) parts.push(`<p>Returns ${this.use(returns)}: ${inline(returnsDescription)}.</p>\n`);
    parts.push(`<p>Since: ${typeof since === 'string' ? escaped(since) : 'QEMU 7.2, or before'}.</p>\n`);
    const errors = examples.errors.get(name) ?? [];
    parts.push(
      table(
        ['Error', 'Text, for instance', 'of'],
        errors.map(({ errorClass, text, said }) => [code(errorClass), escaped(text), code(said)]),
      ),
    );
    for (const exchange of examples.exchanges.get(name) ?? [])
      parts.push(`<pre><code>${escaped(exchange)}</code></pre>\n`);
    return parts.join('');
  }

  event({ name, description, dataType }: Model['events'][number], examples: Examples): string {
    const type = this.#model.types.get(dataType);
    const shown = examples.events.get(name);
    return (
      `${heading(3, name, code(name))}<p>${inline(description)}</p>\n` +
      (type?.kind === 'object' ? this.members(type.members) : '') +
      (shown === undefined ? '' : `<pre><code>${escaped(shown)}</code></pre>\n`)
    );
  }
}

function section(title: string, id: string, parts: readonly string[]): string {
  return parts.length === 0 ? '' : `${heading(2, id, title)}${parts.join('')}`;
}

/** A page for each module. */
export function referencePages(model: Model, examples: Examples): Page[] {
  return model.modules.map(({ name, title, description }) => {
    const page = new ReferencePage(model, modulePath(name));
    const own = <T extends { readonly module: string }>(things: Iterable<T>): T[] =>
      [...things].filter((thing) => thing.module === name);
    const commands = own(model.commands).map((command) => page.command(command, examples));
    const events = own(model.events).map((event) => page.event(event, examples));
    const types = own(model.types.values()).filter((type) => !type.implicit);
    const body =
      `${heading(1, `module-${name}`, escaped(title))}<p>${inline(description)}</p>\n` +
      section('Commands', 'commands', commands) +
      section('Events', 'events', events) +
      section(
        'Types',
        'types',
        types.map((type) => page.type(type)),
      );
    return { path: modulePath(name), title, body };
  });
}
