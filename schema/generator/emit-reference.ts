/**
 * Writes REFERENCE.md: the QMP reference manual, made from the descriptions in the schema.
 */

import type { CommandDefinition, Member, Model, TypeDefinition, TypeUse } from './model.ts';

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
      lines.push(...memberLines(model.types.get(event.dataType)), '');
    }
    for (const type of model.types.values()) {
      if (type.module === module.name && !type.implicit) lines.push(...typeText(type));
    }
  }
  return `${lines
    .join('\n')
    .replace(/\n{3,}/g, '\n\n')
    .trimEnd()}\n`;
}

function commandText(model: Model, command: CommandDefinition): string[] {
  const lines = [
    `### ${command.name} (command)`,
    '',
    `${command.description}${featureText(command.features)}`,
    '',
  ];
  const type = command.argumentType === null ? undefined : model.types.get(command.argumentType);
  if (type?.implicit === true) lines.push('Arguments:', '', ...memberLines(type), '');
  else if (type !== undefined) lines.push(`Arguments: the members of ${link(type.name)}.`, '');
  if (command.returns !== null) {
    const text = command.returnsDescription === '' ? '' : `: ${command.returnsDescription}`;
    lines.push(`Returns ${useText(command.returns)}${text}.`, '');
  }
  return lines;
}

function typeText(type: TypeDefinition): string[] {
  const kind = type.kind === 'object' ? (type.tag === null ? 'object' : 'union') : type.kind;
  const lines = [`### ${type.name} (${kind})`, '', `${type.description}${featureText(type.features)}`, ''];
  switch (type.kind) {
    case 'enum':
      for (const value of type.values) lines.push(`- \`${value.name}\`: ${value.description}`);
      break;
    case 'alternate':
      for (const choice of type.choices) lines.push(`- ${choice.name}: ${useText(choice.use)}`);
      break;
    case 'object':
      lines.push(...memberLines(type));
      for (const [value, branch] of type.branches) {
        if (branch !== null)
          lines.push(`- if \`${type.tag}\` is \`${value}\`: the members of ${link(branch)}`);
      }
      break;
  }
  lines.push('');
  return lines;
}

function memberLines(type: TypeDefinition | undefined): string[] {
  return type?.kind === 'object' ? type.members.map(memberText) : [];
}

function memberText(member: Member): string {
  const name = member.optional ? `[\`${member.name}\`]` : `\`${member.name}\``;
  return `- ${name} (${useText(member.use)}): ${member.description}${featureText(member.features)}`;
}

function featureText(features: readonly string[]): string {
  return features.length === 0 ? '' : ` (${features.join(', ')})`;
}

function useText(use: TypeUse): string {
  switch (use.kind) {
    case 'str':
      return 'string';
    case 'bool':
      return 'boolean';
    case 'int':
      return use.integer;
    case 'list':
      return `array of ${useText(use.element)}`;
    case 'named':
      return link(use.name);
    default:
      return use.kind;
  }
}

function link(name: string): string {
  return `[${name}](#${name.toLowerCase()})`;
}
