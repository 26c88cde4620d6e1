/**
 * Writes option-help.ts: what the members of the types say that the command line reads, for `--blockdev qcow2,help`
 * and the like. The structure of the types is in visitor-tables.ts.
 */

import type { Model, TypeDefinition, TypeUse } from './model.ts';

const HEADER = `/* Generated from schema/*.json by schema/generator. Do not edit. */

/** By type: what each member, or value of an enumeration, is. */
export const OPTION_TEXTS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
`;

/** The text of option-help.ts. */
export function emitOptionHelp(model: Model): string {
  const pending = [...model.types.values()].filter((type) => type.commandLine);
  const seen = new Set(pending);
  const entries: string[] = [];
  for (let type = pending.shift(); type !== undefined; type = pending.shift()) {
    const texts = textsOf(type);
    if (texts.length > 0) entries.push(`  ${type.name}: ${JSON.stringify(Object.fromEntries(texts))},\n`);
    for (const name of usedTypes(type)) {
      const used = model.types.get(name);
      if (used === undefined || seen.has(used)) continue;
      seen.add(used);
      pending.push(used);
    }
  }
  return `${HEADER}${entries.join('')}};\n`;
}

function textsOf(type: TypeDefinition): (readonly [string, string])[] {
  if (type.kind === 'alternate') return [];
  const items = type.kind === 'enum' ? type.values : type.members;
  return items.map(({ name, description }) => [name, description]);
}

function usedTypes(type: TypeDefinition): string[] {
  if (type.kind === 'enum') return [];
  const uses = type.kind === 'alternate' ? type.choices : type.members;
  const branches = type.kind === 'object' ? [...type.branches.values()].filter((name) => name !== null) : [];
  return [...uses.flatMap(({ use }) => namedIn(use)), ...branches];
}

function namedIn(use: TypeUse): string[] {
  if (use.kind === 'named') return [use.name];
  return use.kind === 'list' ? namedIn(use.element) : [];
}
