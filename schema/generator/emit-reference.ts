/**
 * Writes REFERENCE.md: the QMP reference manual, made from the descriptions in the schema.
 */

import type { CommandDefinition, Member, Model, Since, TypeDefinition } from './model.ts';
import { useText } from './use-text.ts';

/** The text of REFERENCE.md. */
export function emitReference(model: Model): string {
  const lines = [
    '# QMP reference',
    '',
    'Generated from `schema/*.json`. Members in square brackets are optional.',
    '',
  ];
  for (const module of model.modules) {
    lines.push(`## ${module.title}`, '', module.description, '');
    for (const command of model.commands)
      if (command.module === module.name) lines.push(...commandText(model, command));
    for (const event of model.events) {
      if (event.module !== module.name) continue;
      lines.push(`### ${event.name} (event)`, '', event.description, '');
      lines.push(...memberLines(model, model.types.get(event.dataType)), '');
    }
    for (const type of model.types.values()) {
      if (type.module === module.name && !type.implicit) lines.push(...typeText(model, type));
    }
  }
  return `${lines
    .join('\n')
    .replace(/\n{3,}/g, '\n\n')
    .trimEnd()}\n`;
}

function commandText(model: Model, command: CommandDefinition): string[] {
  const lines = [`### ${command.name} (command)`, '', `${command.description}${notesText(command)}`, ''];
  const type = command.argumentType === null ? undefined : model.types.get(command.argumentType);
  if (type?.implicit === true) lines.push('Arguments:', '', ...memberLines(model, type), '');
  else if (type !== undefined) lines.push(`Arguments: the members of ${link(model, type.name)}.`, '');
  if (command.returns !== null) {
    const text = command.returnsDescription === '' ? '' : `: ${command.returnsDescription}`;
    lines.push(`Returns ${useText(command.returns, (name) => link(model, name))}${text}.`, '');
  }
  return lines;
}

function typeText(model: Model, type: TypeDefinition): string[] {
  const lines = [`### ${type.name} (${kindOf(type)})`, '', `${type.description}${notesText(type)}`, ''];
  switch (type.kind) {
    case 'enum':
      for (const value of type.values)
        lines.push(`- \`${value.name}\`: ${value.description}${notesText(value)}`);
      break;
    case 'alternate':
      for (const choice of type.choices)
        lines.push(
          `- ${choice.name} (${useText(choice.use, (name) => link(model, name))}): ${choice.description}`,
        );
      break;
    case 'object':
      lines.push(...memberLines(model, type));
      for (const [value, branch] of type.branches) {
        if (branch !== null)
          lines.push(`- if \`${type.tag}\` is \`${value}\`: the members of ${link(model, branch)}`);
      }
      break;
  }
  lines.push('');
  return lines;
}

function memberLines(model: Model, type: TypeDefinition | undefined): string[] {
  return type?.kind === 'object' ? type.members.map((member) => memberText(model, member)) : [];
}

function memberText(model: Model, member: Member): string {
  const name = member.optional ? `[\`${member.name}\`]` : `\`${member.name}\``;
  return `- ${name} (${useText(member.use, (name) => link(model, name))}): ${member.description}${notesText(member)}`;
}

/** What is special about it, and since when it is there. */
function notesText({ features, since }: { features: readonly string[]; since?: Since }): string {
  const notes = [...features, ...(typeof since === 'string' ? [`since ${since}`] : [])];
  return notes.length === 0 ? '' : ` (${notes.join(', ')})`;
}

function kindOf(type: TypeDefinition): string {
  if (type.kind !== 'object') return type.kind;
  return type.tag === null ? 'object' : 'union';
}

/** A link to the heading of a type, whose anchor is made of name and kind. */
function link(model: Model, name: string): string {
  const type = model.types.get(name);
  if (type === undefined) throw new Error(`no type ${name}`);
  return `[${name}](#${name.toLowerCase()}-${kindOf(type)})`;
}
