/**
 * Writes forms.ts: what a program that shows forms needs of the arguments of all commands, types and texts, as short as it
 * can be said. Web pages read it: it holds nothing that no argument leads to.
 */

import type { Model, TypeDefinition, TypeUse } from './model.ts';

const HEAD = `/* Generated from schema/*.json by schema/generator. Do not edit. */

/** A type: a builtin, "@NAME" of FORM_TYPES, or "[TYPE]" for a list. */
export type FormUse = string;

/** Name, type, text; \`optional\` where it may be left out. */
export interface FormMember {
  readonly name: string;
  readonly use: FormUse;
  readonly about: string;
  readonly optional?: true;
}

export type FormType =
  | { readonly kind: 'enum'; readonly values: readonly (readonly [name: string, about: string])[] }
  | { readonly kind: 'alternate'; readonly choices: readonly (readonly [name: string, use: FormUse])[] }
  | {
      readonly kind: 'object';
      readonly members: readonly FormMember[];
      /** The member whose value chooses a branch: a type whose members are added; "" for none. */
      readonly tag?: string;
      readonly branches?: Readonly<Record<string, string>>;
    };

export interface FormCommand {
  readonly about: string;
  /** The type of the arguments; "" for none. */
  readonly args: string;
}

`;

/** The text of forms.ts. */
export function emitForms(model: Model): string {
  const types: Record<string, object> = {};
  const visit = (name: string): void => {
    const type = model.types.get(name);
    if (type === undefined || name in types) return;
    types[name] = {};
    types[name] = formType(type, (use) => shortUse(use, visit), visit);
  };
  const commands: Record<string, object> = {};
  for (const { name, description, argumentType } of model.commands) {
    if (argumentType !== null) visit(argumentType);
    commands[name] = { about: description, args: argumentType ?? '' };
  }
  return `${HEAD}export const FORM_COMMANDS: Readonly<Record<string, FormCommand>> = ${lines(commands)};

export const FORM_TYPES: Readonly<Record<string, FormType>> = ${lines(types)};
`;
}

function lines(entries: Readonly<Record<string, object>>): string {
  const texts = Object.entries(entries).map(
    ([name, value]) => `  ${JSON.stringify(name)}: ${JSON.stringify(value)}`,
  );
  return `{\n${texts.join(',\n')}\n}`;
}

function formType(
  type: TypeDefinition,
  short: (use: TypeUse) => string,
  visit: (name: string) => void,
): object {
  switch (type.kind) {
    case 'enum':
      return { kind: 'enum', values: type.values.map(({ name, description }) => [name, description]) };
    case 'alternate':
      return { kind: 'alternate', choices: type.choices.map(({ name, use }) => [name, short(use)]) };
    case 'object': {
      const members = type.members.map(({ name, use, description, optional }) => ({
        name,
        use: short(use),
        about: description,
        ...(optional && { optional: true }),
      }));
      if (type.tag === null) return { kind: 'object', members };
      for (const branch of type.branches.values()) if (branch !== null) visit(branch);
      const branches = Object.fromEntries([...type.branches].map(([value, branch]) => [value, branch ?? '']));
      return { kind: 'object', members, tag: type.tag, branches };
    }
  }
}

function shortUse(use: TypeUse, visit: (name: string) => void): string {
  switch (use.kind) {
    case 'int':
      return use.integer;
    case 'list':
      return `[${shortUse(use.element, visit)}]`;
    case 'named':
      visit(use.name);
      return `@${use.name}`;
    default:
      return use.kind;
  }
}
