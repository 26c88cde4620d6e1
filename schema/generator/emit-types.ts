/**
 * Writes types.ts: a TypeScript type for every type of the schema, and the maps Commands and Events.
 */

import { compile, type JSONSchema } from 'json-schema-to-typescript';
import { expandModel } from './expand.ts';
import type { Model, TypeUse } from './model.ts';

const BANNER = `/* Generated from schema/*.json by schema/generator. Do not edit. */
/* Integers are JS numbers: int64 and uint64 values beyond 2^53 are rounded when arguments are converted. */
`;

/** The text of types.ts. */
export async function emitTypes(model: Model): Promise<string> {
  const schema = {
    ...expandModel(model, 'types'),
    type: 'object',
    additionalProperties: false,
  } as JSONSchema;
  const types = await compile(schema, 'Qmp', {
    bannerComment: '',
    additionalProperties: false,
    unreachableDefinitions: true,
    unknownAny: true,
    style: { singleQuote: true, printWidth: 110 },
  });
  const withoutRoot = types
    .replace(/^export interface Qmp \{\}\n/m, '')
    // The tool notes where an unreachable definition came from; that is noise to the reader.
    .replace(/^ \* (This interface was referenced|via the `definition)[^\n]*\n/gm, '')
    .replace(/^ \*\n(?= \*\/)/gm, '')
    .replace(/^\/\*\*\n \*\/\n/gm, '');
  return `${BANNER}${withoutRoot}\n${emitMaps(model)}`;
}

function emitMaps(model: Model): string {
  const empty = 'Record<string, never>';
  const commands = model.commands.map((command) => {
    const args = command.argumentType ?? empty;
    const ret = command.returns === null ? empty : typescriptType(command.returns);
    return `  /** ${command.description} */\n  '${command.name}': { args: ${args}; ret: ${ret} };\n`;
  });
  const events = model.events.map(
    (event) => `  /** ${event.description} */\n  ${event.name}: ${event.dataType};\n`,
  );
  return (
    `/** Every command: its arguments and what it returns. */\nexport interface Commands {\n${commands.join('')}}\n\n` +
    `/** Every event and its data. */\nexport interface Events {\n${events.join('')}}\n`
  );
}

function typescriptType(use: TypeUse): string {
  switch (use.kind) {
    case 'str':
      return 'string';
    case 'bool':
      return 'boolean';
    case 'null':
      return 'null';
    case 'number':
    case 'int':
      return 'number';
    case 'any':
      return 'unknown';
    case 'list':
      return `${typescriptType(use.element)}[]`;
    case 'named':
      return use.name;
  }
}
