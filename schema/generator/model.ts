/**
 * The schema as the generator sees it: modules read from schema/*.json, checked against schema/dialect.json, with
 * every reference resolved.
 *
 * Here: the model and its loader. Not here: anything that writes a file (emit-*.ts).
 */

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { Ajv2020 } from 'ajv/dist/2020.js';

export type IntegerKind = 'int64' | 'uint64' | 'uint8' | 'uint16' | 'uint32';

/** The type of a member, element or result. */
export type TypeUse =
  | { readonly kind: 'str' | 'bool' | 'null' | 'number' | 'any' }
  | { readonly kind: 'int'; readonly integer: IntegerKind }
  | { readonly kind: 'list'; readonly element: TypeUse }
  | { readonly kind: 'named'; readonly name: string };

export interface Member {
  readonly name: string;
  readonly use: TypeUse;
  readonly optional: boolean;
  readonly description: string;
  readonly features: readonly string[];
  readonly since: Since;
}

/** Release that has it, where the original's 7.2 has not; null: it has. */
export type Since = string | null;

export interface EnumType {
  readonly kind: 'enum';
  readonly values: readonly {
    readonly name: string;
    readonly description: string;
    readonly features: readonly string[];
    readonly since: Since;
  }[];
}

/** A struct (no tag) or a union. `members` holds the members of the base types too, those first. */
export interface ObjectType {
  readonly kind: 'object';
  readonly members: readonly Member[];
  /** The discriminator of a union. */
  readonly tag: string | null;
  /** For each value of the tag, the struct whose members are added; null: none. */
  readonly branches: ReadonlyMap<string, string | null>;
}

export interface AlternateType {
  readonly kind: 'alternate';
  readonly choices: readonly { readonly name: string; readonly use: TypeUse; readonly description: string }[];
}

export type TypeDefinition = (EnumType | ObjectType | AlternateType) & {
  readonly name: string;
  readonly module: string;
  readonly description: string;
  readonly features: readonly string[];
  /** Also read from the command line. */
  readonly commandLine: boolean;
  /** Made for the arguments of one command or the data of one event. */
  readonly implicit: boolean;
};

export interface CommandDefinition {
  readonly name: string;
  readonly module: string;
  readonly description: string;
  /** Object type of the arguments; null: none. */
  readonly argumentType: string | null;
  readonly returns: TypeUse | null;
  readonly returnsDescription: string;
  readonly features: readonly string[];
  readonly since: Since;
}

export interface EventDefinition {
  readonly name: string;
  readonly module: string;
  readonly description: string;
  readonly dataType: string;
}

export interface ModuleDefinition {
  readonly name: string;
  readonly title: string;
  readonly description: string;
}

export interface Model {
  readonly modules: readonly ModuleDefinition[];
  readonly types: ReadonlyMap<string, TypeDefinition>;
  readonly commands: readonly CommandDefinition[];
  readonly events: readonly EventDefinition[];
}

/** Modules in the order of the manual, of introspection and, backwards, of query-commands: the original's. */
const MODULE_ORDER = [
  'common',
  'sockets',
  'authz',
  'crypto',
  'error',
  'block-nbd',
  'block-network',
  'block-storage',
  'block-core',
  'image-formats',
  'block-filters',
  'test-drivers',
  'copy-before-write',
  'virtual-disks',
  'block-graph',
  'job',
  'block-job',
  'transaction',
  'mirror',
  'stream-commit',
  'backup',
  'block-export',
  'char',
  'control',
  'introspect',
  'qom',
  'config',
];

// ---- the files as they are, after the check against the dialect ------------------------------------------------

interface RawUse {
  readonly description?: string;
  readonly $ref?: string;
  readonly type?: 'string' | 'boolean' | 'null' | 'number' | 'array';
  readonly items?: RawUse;
  readonly 'x-int'?: IntegerKind;
  readonly 'x-any'?: true;
  readonly 'x-features'?: readonly string[];
  readonly 'x-since'?: string;
}

interface RawMembers {
  readonly properties: Readonly<Record<string, RawUse>>;
  readonly required?: readonly string[];
}

interface RawType extends Partial<RawMembers> {
  readonly description: string;
  readonly enum?: readonly string[];
  readonly 'x-enum-descriptions'?: Readonly<Record<string, string>>;
  readonly 'x-enum-features'?: Readonly<Record<string, readonly string[]>>;
  readonly 'x-enum-since'?: Readonly<Record<string, string>>;
  readonly 'x-base'?: { readonly $ref: string };
  readonly 'x-features'?: readonly string[];
  readonly 'x-command-line'?: true;
  readonly 'x-union'?: {
    readonly base: RawMembers;
    readonly discriminator: string;
    readonly branches: Readonly<Record<string, { readonly $ref: string }>>;
  };
  readonly 'x-alternate'?: Readonly<Record<string, RawUse>>;
}

interface RawModule {
  readonly title: string;
  readonly description: string;
  readonly $defs?: Readonly<Record<string, RawType>>;
  readonly 'x-commands'?: Readonly<
    Record<
      string,
      {
        readonly description: string;
        readonly arguments?: RawMembers | { readonly $ref: string };
        readonly returns?: RawUse;
        readonly 'x-features'?: readonly string[];
        readonly 'x-since'?: string;
      }
    >
  >;
  readonly 'x-events'?: Readonly<Record<string, { readonly description: string; readonly data: RawMembers }>>;
}

/** Reads and checks all modules of a folder; throws with the file and place of the first mistake. */
export function loadModel(folder: string): Model {
  const raw = readModules(folder);
  const builder = new ModelBuilder(raw);
  return builder.build();
}

function readModules(folder: string): ReadonlyMap<string, RawModule> {
  const readJson = (file: string): unknown => JSON.parse(readFileSync(path.join(folder, file), 'utf8'));
  const check = new Ajv2020({ strict: false }).compile(readJson('dialect.json') as object);
  const files = readdirSync(folder).filter((file) => file.endsWith('.json') && file !== 'dialect.json');
  const names = files.map((file) => path.basename(file, '.json'));
  const unordered = names.filter((name) => !MODULE_ORDER.includes(name));
  if (unordered.length > 0)
    throw new Error(`schema modules missing in MODULE_ORDER: ${unordered.join(', ')}`);
  const modules = new Map<string, RawModule>();
  for (const name of MODULE_ORDER) {
    const module = readJson(`${name}.json`);
    if (!check(module)) {
      const first = check.errors?.[0];
      throw new Error(`schema/${name}.json${first?.instancePath ?? ''}: ${first?.message ?? 'invalid'}`);
    }
    modules.set(name, module as RawModule);
  }
  return modules;
}

/** "block-core" → "BlockCore". */
function pascalCase(name: string): string {
  return name
    .split(/[-_]/)
    .map((word) => word.charAt(0).toUpperCase() + word.slice(1))
    .join('');
}

class ModelBuilder {
  readonly #raw: ReadonlyMap<string, RawModule>;
  readonly #homes = new Map<string, string>();
  readonly #types = new Map<string, TypeDefinition>();

  constructor(raw: ReadonlyMap<string, RawModule>) {
    this.#raw = raw;
    for (const [module, { $defs = {} }] of raw) {
      for (const name of Object.keys($defs)) {
        const home = this.#homes.get(name);
        if (home !== undefined) throw new Error(`type ${name} is in ${home} and in ${module}`);
        this.#homes.set(name, module);
      }
    }
  }

  build(): Model {
    const modules: ModuleDefinition[] = [];
    const commands: CommandDefinition[] = [];
    const events: EventDefinition[] = [];
    for (const [module, raw] of this.#raw) {
      modules.push({ name: module, title: raw.title, description: raw.description });
      for (const [name, type] of Object.entries(raw.$defs ?? {})) this.#addType(module, name, type);
      for (const [name, command] of Object.entries(raw['x-commands'] ?? {})) {
        const args = command.arguments;
        let argumentType: string | null = null;
        if (args !== undefined && '$ref' in args) argumentType = this.#resolve(module, args.$ref);
        else if (args !== undefined) {
          argumentType = this.#addImplicit(
            module,
            `${pascalCase(name)}Arguments`,
            `Arguments of ${name}.`,
            args,
          );
        }
        commands.push({
          name,
          module,
          description: command.description,
          argumentType,
          returns: command.returns === undefined ? null : this.#use(module, command.returns),
          returnsDescription: command.returns?.description ?? '',
          features: command['x-features'] ?? [],
          since: command['x-since'] ?? null,
        });
      }
      for (const [name, event] of Object.entries(raw['x-events'] ?? {})) {
        const typeName = `${pascalCase(name.toLowerCase())}Data`;
        const dataType = this.#addImplicit(module, typeName, `Data of ${name}.`, event.data);
        events.push({ name, module, description: event.description, dataType });
      }
    }
    const model = { modules, types: this.#types, commands, events };
    checkModel(model);
    return model;
  }

  #addImplicit(module: string, name: string, description: string, raw: RawMembers): string {
    this.#addType(module, name, { description, ...raw }, true);
    return name;
  }

  #addType(module: string, name: string, raw: RawType, implicit = false): void {
    if (this.#types.has(name)) throw new Error(`type ${name} is defined twice`);
    const common = {
      name,
      module,
      description: raw.description,
      features: raw['x-features'] ?? [],
      commandLine: raw['x-command-line'] === true,
      implicit,
    };
    if (raw.enum !== undefined) {
      const descriptions = raw['x-enum-descriptions'] ?? {};
      const values = raw.enum.map((value) => ({
        name: value,
        description: descriptions[value] ?? '',
        features: raw['x-enum-features']?.[value] ?? [],
        since: raw['x-enum-since']?.[value] ?? null,
      }));
      this.#types.set(name, { ...common, kind: 'enum', values });
    } else if (raw['x-alternate'] !== undefined) {
      const choices = Object.entries(raw['x-alternate']).map(([choice, use]) => ({
        name: choice,
        use: this.#use(module, use),
        description: use.description ?? '',
      }));
      this.#types.set(name, { ...common, kind: 'alternate', choices });
    } else if (raw['x-union'] !== undefined) {
      const { base, discriminator, branches } = raw['x-union'];
      const members = this.#members(module, base);
      const targets = new Map<string, string | null>();
      for (const value of this.#enumValues(members, discriminator, name)) {
        const branch = branches[value];
        targets.set(value, branch === undefined ? null : this.#resolve(module, branch.$ref));
      }
      for (const value of Object.keys(branches)) {
        if (!targets.has(value)) throw new Error(`${name}: branch ${value} is no value of ${discriminator}`);
      }
      this.#types.set(name, { ...common, kind: 'object', members, tag: discriminator, branches: targets });
    } else {
      const members = this.#structMembers(module, raw);
      this.#types.set(name, { ...common, kind: 'object', members, tag: null, branches: new Map() });
    }
  }

  /** Members of a struct, those of its bases first. */
  #structMembers(module: string, raw: RawType): readonly Member[] {
    const own = this.#members(module, {
      properties: raw.properties ?? {},
      ...(raw.required && { required: raw.required }),
    });
    if (raw['x-base'] === undefined) return own;
    const baseName = this.#resolve(module, raw['x-base'].$ref);
    const baseModule = this.#homes.get(baseName) ?? '';
    const base = this.#raw.get(baseModule)?.$defs?.[baseName];
    if (base?.properties === undefined) throw new Error(`base ${baseName} is not a struct`);
    return [...this.#structMembers(baseModule, base), ...own];
  }

  #members(module: string, raw: RawMembers): readonly Member[] {
    const required = new Set(raw.required ?? []);
    return Object.entries(raw.properties).map(([name, use]) => ({
      name,
      use: this.#use(module, use),
      optional: !required.has(name),
      description: use.description ?? '',
      features: use['x-features'] ?? [],
      since: use['x-since'] ?? null,
    }));
  }

  #enumValues(members: readonly Member[], tag: string, owner: string): readonly string[] {
    const use = members.find((member) => member.name === tag)?.use;
    if (use?.kind !== 'named')
      throw new Error(`${owner}: discriminator ${tag} is not an enum member of the base`);
    const values = this.#raw.get(this.#homes.get(use.name) ?? '')?.$defs?.[use.name]?.enum;
    if (values === undefined) throw new Error(`${owner}: discriminator ${tag} is not an enum`);
    return values;
  }

  #use(module: string, raw: RawUse): TypeUse {
    if (raw.$ref !== undefined) return { kind: 'named', name: this.#resolve(module, raw.$ref) };
    if (raw['x-int'] !== undefined) return { kind: 'int', integer: raw['x-int'] };
    if (raw['x-any'] !== undefined) return { kind: 'any' };
    switch (raw.type) {
      case 'string':
        return { kind: 'str' };
      case 'boolean':
        return { kind: 'bool' };
      case 'null':
      case 'number':
        return { kind: raw.type };
      case 'array':
        if (raw.items === undefined) throw new Error(`${module}: array without items`);
        return { kind: 'list', element: this.#use(module, raw.items) };
      default:
        throw new Error(`${module}: type without a kind`);
    }
  }

  #resolve(module: string, reference: string): string {
    const [file = '', name = ''] = reference.split('#/$defs/');
    const target = file === '' ? module : path.basename(file, '.json');
    if (this.#homes.get(name) !== target) throw new Error(`${module}: no type ${reference}`);
    return name;
  }
}

/** What needs all types: distinct member names, and alternates that the JSON type can tell apart. */
function checkModel(model: Model): void {
  for (const type of model.types.values()) {
    if (type.kind === 'object') {
      const own = type.members.map((member) => member.name);
      assertDistinct(own, type.name);
      for (const branch of type.branches.values()) {
        if (branch === null) continue;
        const struct = model.types.get(branch);
        if (struct?.kind !== 'object' || struct.tag !== null)
          throw new Error(`${type.name}: ${branch} is not a struct`);
        assertDistinct([...own, ...struct.members.map((member) => member.name)], `${type.name}/${branch}`);
      }
    } else if (type.kind === 'alternate') {
      assertDistinct(
        type.choices.map((choice) => jsonTypeOf(model, choice.use)),
        type.name,
      );
    }
  }
}

/** The JSON type that selects a choice of an alternate. */
export function jsonTypeOf(
  model: Model,
  use: TypeUse,
): 'string' | 'object' | 'boolean' | 'integer' | 'null' | 'array' {
  switch (use.kind) {
    case 'str':
      return 'string';
    case 'bool':
      return 'boolean';
    case 'null':
      return 'null';
    case 'int':
      return 'integer';
    case 'list':
      return 'array';
    case 'named':
      return model.types.get(use.name)?.kind === 'enum' ? 'string' : 'object';
    default:
      throw new Error(`${use.kind} cannot be a choice of an alternate`);
  }
}

function assertDistinct(names: readonly string[], owner: string): void {
  if (new Set(names).size !== names.length)
    throw new Error(`${owner}: names are not distinct: ${names.join(' ')}`);
}
