/**
 * Writes visitor-tables.ts: the compact description of the argument types that the visitor walks, to word errors
 * and to convert command-line strings.
 */

import { rootTypes } from './emit-validators.ts';
import { jsonTypeOf, type Model, type TypeDefinition, type TypeUse } from './model.ts';

const HEADER = `/* Generated from schema/*.json by schema/generator. Do not edit. */

/** A type by name: a built-in (str, bool, null, number, any, int64, uint64, uint8, uint16, uint32), a type of
    VISITOR_TYPES, or [ELEMENT]. */
export type VisitorTypeName = string;

/** [name, type, optional] */
export type VisitorMember = readonly [name: string, type: VisitorTypeName, optional: 0 | 1];

export type VisitorType =
  | { readonly kind: 'enum'; readonly values: readonly string[] }
  | {
      readonly kind: 'object';
      /** In the order in which they are checked; \`tag\` and its branches make a union. */
      readonly members: readonly VisitorMember[];
      readonly tag?: string;
      /** Tag value to the struct whose members follow; null: none. */
      readonly branches?: Readonly<Record<string, VisitorTypeName | null>>;
    }
  | {
      readonly kind: 'alternate';
      /** JSON type to the type that it selects. */
      readonly choices: Readonly<Record<string, VisitorTypeName>>;
    };

`;

/** The text of visitor-tables.ts. */
export function emitVisitorTables(model: Model): string {
  const pending = [...rootTypes(model)];
  const seen = new Set(pending);
  const entries: string[] = [];
  for (let name = pending.shift(); name !== undefined; name = pending.shift()) {
    const type = model.types.get(name);
    if (type === undefined) throw new Error(`no type ${name}`);
    entries.push(`  ${name}: ${JSON.stringify(tableEntry(model, type))},\n`);
    for (const used of usedTypes(type)) {
      if (seen.has(used)) continue;
      seen.add(used);
      pending.push(used);
    }
  }
  const commands = model.commands.map(
    (command) =>
      `  '${command.name}': ${command.argumentType === null ? 'null' : `'${command.argumentType}'`},\n`,
  );
  return (
    `${HEADER}export const VISITOR_TYPES: Readonly<Record<string, VisitorType>> = {\n${entries.join('')}};\n\n` +
    `/** Every command, in the order of the manual, with the type of its arguments; null: it takes none. */\n` +
    `export const COMMAND_ARGUMENTS = {\n${commands.join('')}} as const;\n\n` +
    `/** Every event. */\nexport const EVENT_NAMES = ${JSON.stringify(model.events.map((event) => event.name))} as const;\n`
  );
}

function tableEntry(model: Model, type: TypeDefinition): object {
  switch (type.kind) {
    case 'enum':
      return { kind: 'enum', values: type.values.map((value) => value.name) };
    case 'alternate':
      return {
        kind: 'alternate',
        choices: Object.fromEntries(type.choices.map(({ use }) => [jsonTypeOf(model, use), useName(use)])),
      };
    case 'object':
      return {
        kind: 'object',
        members: type.members.map((member) => [member.name, useName(member.use), member.optional ? 1 : 0]),
        ...(type.tag !== null && { tag: type.tag, branches: Object.fromEntries(type.branches) }),
      };
  }
}

function useName(use: TypeUse): string {
  switch (use.kind) {
    case 'int':
      return use.integer;
    case 'list':
      return `[${useName(use.element)}]`;
    case 'named':
      return use.name;
    default:
      return use.kind;
  }
}

function usedTypes(type: TypeDefinition): readonly string[] {
  if (type.kind === 'enum') return [];
  const uses = type.kind === 'alternate' ? type.choices : type.members;
  const names = uses.flatMap(({ use }) => namedIn(use));
  if (type.kind === 'object')
    for (const branch of type.branches.values()) if (branch !== null) names.push(branch);
  return names;
}

function namedIn(use: TypeUse): string[] {
  if (use.kind === 'named') return [use.name];
  return use.kind === 'list' ? namedIn(use.element) : [];
}
