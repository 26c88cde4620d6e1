/**
 * Writes client.ts: the methods of the typed client, one a command, and which command each of them is.
 */

import type { CommandDefinition, Model } from './model.ts';

/** "blockdev-add" and "block_resize" → "blockdevAdd" and "blockResize". */
export function methodName(command: string): string {
  return command.replace(/[-_](\w)/g, (_match, letter: string) => letter.toUpperCase());
}

/** The text of client.ts. */
export function emitClient(model: Model): string {
  const methods = model.commands.map((command) => methodText(model, command));
  const table = model.commands.map(({ name }) => `  ${methodName(name)}: '${name}',\n`);
  return (
    '/* Generated from schema/*.json by schema/generator. Do not edit. */\n' +
    "import type { CallOptions } from '../../client/client.ts';\n" +
    "import type { Commands } from './types.ts';\n\n" +
    `/** Every command as a method. */\nexport interface CommandMethods {\n${methods.join('')}}\n\n` +
    `/** The command of each method. */\nexport const COMMAND_OF_METHOD = {\n${table.join('')}} as const;\n`
  );
}

function methodText(model: Model, { name, description, argumentType, features }: CommandDefinition): string {
  const type = argumentType === null ? undefined : model.types.get(argumentType);
  const needsNone =
    type?.kind === 'object' && type.tag === null && type.members.every((member) => member.optional);
  const optional = argumentType === null || needsNone ? '?' : '';
  const note = features.length === 0 ? '' : ` (${features.join(', ')})`;
  return (
    `  /** ${description}${note} */\n` +
    `  ${methodName(name)}(args${optional}: Commands['${name}']['args'], options?: CallOptions): ` +
    `Promise<Commands['${name}']['ret']>;\n`
  );
}
