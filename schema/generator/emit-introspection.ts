/**
 * Writes introspection.ts: the answer to query-qmp-schema.
 *
 * Commands and events carry their names; types are numbered in the order of their first use, so that clients do not
 * rely on names. Everything listed is reachable from a command or an event.
 */

import { jsonTypeOf, type Member, type Model, type TypeUse } from './model.ts';

const BUILTINS: Readonly<Record<string, string>> = {
  str: 'string',
  bool: 'boolean',
  null: 'null',
  number: 'number',
  int: 'int',
  any: 'value',
};

type Entity = Record<string, unknown>;

/** The text of introspection.ts. */
export function emitIntrospection(model: Model): string {
  const text = JSON.stringify(introspect(model), null, 1).replaceAll('\n', '\n  ');
  return (
    '/* Generated from schema/*.json by schema/generator. Do not edit. */\n' +
    "import type { SchemaInfo } from './types.ts';\n\n" +
    `/** The answer to query-qmp-schema. */\nexport const INTROSPECTION: SchemaInfo[] = ${text};\n`
  );
}

/** The schema as query-qmp-schema shows it. */
export function introspect(model: Model): readonly Entity[] {
  return new Introspector(model).run();
}

/** The number by which introspection knows each type of the schema that it lists. */
export function introspectionNumbers(model: Model): ReadonlyMap<string, string> {
  const introspector = new Introspector(model);
  introspector.run();
  return introspector.numbers;
}

class Introspector {
  readonly #model: Model;
  readonly #numbers = new Map<string, string>();
  /** Types that were mentioned and are still to be described, in the order of their first mention. */
  readonly #pending: (() => Entity)[] = [];

  constructor(model: Model) {
    this.#model = model;
  }

  run(): readonly Entity[] {
    const entities: Entity[] = [];
    for (const command of this.#model.commands) {
      entities.push({
        name: command.name,
        'meta-type': 'command',
        'arg-type': this.#objectName(command.argumentType),
        'ret-type': command.returns === null ? this.#objectName(null) : this.#useName(command.returns),
        ...features(command.features),
      });
    }
    for (const event of this.#model.events) {
      entities.push({ name: event.name, 'meta-type': 'event', 'arg-type': this.#objectName(event.dataType) });
    }
    for (let next = this.#pending.shift(); next !== undefined; next = this.#pending.shift())
      entities.push(next());
    return entities;
  }

  get numbers(): ReadonlyMap<string, string> {
    return this.#numbers;
  }

  /** Name of a type that is described once; the first mention puts it on the list. */
  #mention(key: string, name: () => string, describe: (name: string) => Entity): string {
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    const given = name();
    this.#numbers.set(key, given);
    this.#pending.push(() => describe(given));
    return given;
  }

  #nextNumber(): string {
    return String([...this.#numbers.values()].filter((name) => /^\d/.test(name)).length);
  }

  #objectName(name: string | null): string {
    if (name !== null) return this.#namedName(name);
    return this.#mention(
      '',
      () => this.#nextNumber(),
      (number) => ({ name: number, 'meta-type': 'object', members: [] }),
    );
  }

  #useName(use: TypeUse): string {
    switch (use.kind) {
      case 'named':
        return this.#namedName(use.name);
      case 'list': {
        const element = this.#useName(use.element);
        return this.#mention(
          `[${element}]`,
          () => `[${element}]`,
          (name) => ({ name, 'meta-type': 'array', 'element-type': element }),
        );
      }
      default:
        return this.#mention(
          use.kind,
          () => use.kind,
          (name) => ({ name, 'meta-type': 'builtin', 'json-type': BUILTINS[name] }),
        );
    }
  }

  #namedName(name: string): string {
    return this.#mention(
      name,
      () => this.#nextNumber(),
      (number) => this.#describe(name, number),
    );
  }

  #describe(name: string, number: string): Entity {
    const type = this.#model.types.get(name);
    if (type === undefined) throw new Error(`no type ${name}`);
    switch (type.kind) {
      case 'enum':
        return {
          name: number,
          'meta-type': 'enum',
          members: type.values.map((value) => ({ name: value.name, ...features(value.features) })),
          values: type.values.map((value) => value.name),
        };
      case 'alternate':
        for (const choice of type.choices) jsonTypeOf(this.#model, choice.use);
        return {
          name: number,
          'meta-type': 'alternate',
          members: type.choices.map((choice) => ({ type: this.#useName(choice.use) })),
        };
      case 'object':
        return {
          name: number,
          'meta-type': 'object',
          members: type.members.map((member) => this.#member(member)),
          ...(type.tag !== null && {
            tag: type.tag,
            variants: [...type.branches].map(([value, branch]) => ({
              case: value,
              type: this.#objectName(branch),
            })),
          }),
          ...features(type.features),
        };
    }
  }

  #member(member: Member): Entity {
    return {
      name: member.name,
      type: this.#useName(member.use),
      ...(member.optional && { default: null }),
      ...features(member.features),
    };
  }
}

function features(names: readonly string[]): { readonly features?: readonly string[] } {
  return names.length > 0 ? { features: names } : {};
}
