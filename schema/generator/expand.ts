/**
 * The dialect expanded into plain JSON Schema (2020-12): bases and branches are written out, unions become `oneOf`
 * with a discriminating constant, alternates become `oneOf`.
 *
 * Three flavours: 'plain' for other programs; 'types' for the making of TypeScript types, whose tool wants no
 * keyword beside $ref and no empty schema; 'values' for the ahead-of-time validators, where integers keep the
 * keyword x-int because the JSON reader yields bigint beyond 2^53.
 */

import type { IntegerKind, Member, Model, TypeDefinition, TypeUse } from './model.ts';

export type JsonSchema = { readonly [keyword: string]: unknown };
export type Flavour = 'plain' | 'types' | 'values';

/** Inclusive ranges. int64 and uint64 end at the last double inside; x-int checks them exactly. */
export const INTEGER_RANGES: Readonly<
  Record<IntegerKind, { readonly minimum: number; readonly maximum: number }>
> = {
  int64: { minimum: -(2 ** 63), maximum: 2 ** 63 - 1024 },
  uint64: { minimum: 0, maximum: 2 ** 64 - 2048 },
  uint8: { minimum: 0, maximum: 0xff },
  uint16: { minimum: 0, maximum: 0xffff },
  uint32: { minimum: 0, maximum: 0xffff_ffff },
};

/** One schema with every type of the model in $defs. */
export function expandModel(model: Model, flavour: Flavour): JsonSchema {
  const definitions: Record<string, JsonSchema> = {};
  for (const type of model.types.values()) definitions[type.name] = expandType(model, type, flavour);
  const dialect = flavour === 'plain' ? { $schema: 'https://json-schema.org/draft/2020-12/schema' } : {};
  return { ...dialect, $id: 'qmp', $defs: definitions };
}

function expandType(model: Model, type: TypeDefinition, flavour: Flavour): JsonSchema {
  const head = flavour === 'values' ? {} : { description: type.description };
  switch (type.kind) {
    case 'enum':
      return { ...head, type: 'string', enum: type.values.map((value) => value.name) };
    case 'alternate':
      return { ...head, oneOf: type.choices.map((choice) => expandUse(choice.use, flavour)) };
    case 'object': {
      if (type.tag === null) return { ...head, ...objectSchema(type.members, flavour) };
      const tag = type.tag;
      const branches = [...type.branches].map(([value, branch]) => {
        const struct = branch === null ? undefined : model.types.get(branch);
        const extra = struct?.kind === 'object' ? struct.members : [];
        return objectSchema([...type.members, ...extra], flavour, { name: tag, value });
      });
      return {
        ...head,
        type: 'object',
        discriminator: { propertyName: tag },
        required: [tag],
        oneOf: branches,
      };
    }
  }
}

function objectSchema(
  members: readonly Member[],
  flavour: Flavour,
  tag?: { readonly name: string; readonly value: string },
): JsonSchema {
  const properties: Record<string, JsonSchema> = {};
  for (const member of members) {
    const use = member.name === tag?.name ? { const: tag.value } : expandUse(member.use, flavour);
    const notes = {
      description: member.description,
      ...(member.features.includes('deprecated') && { deprecated: true }),
    };
    const bare = flavour === 'values' || (flavour === 'types' && '$ref' in use);
    properties[member.name] = bare ? use : { ...use, ...notes };
  }
  const required = members.filter((member) => !member.optional).map((member) => member.name);
  return {
    ...(tag === undefined && { type: 'object' }),
    properties,
    ...(required.length > 0 && { required }),
    additionalProperties: false,
  };
}

export function expandUse(use: TypeUse, flavour: Flavour): JsonSchema {
  switch (use.kind) {
    case 'str':
      return { type: 'string' };
    case 'bool':
      return { type: 'boolean' };
    case 'null':
      return { type: 'null' };
    case 'number':
      return { type: 'number' };
    case 'any':
      return flavour === 'types' ? { tsType: 'unknown' } : {};
    case 'int':
      return flavour === 'values'
        ? { 'x-int': use.integer }
        : { type: 'integer', ...INTEGER_RANGES[use.integer] };
    case 'list':
      return { type: 'array', items: expandUse(use.element, flavour) };
    case 'named':
      return { $ref: `#/$defs/${use.name}` };
  }
}
