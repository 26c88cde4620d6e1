/** What may come next on the line: commands, their arguments, the values these take, and the names of what is there. */

import type { SchemaInfo } from '../../schema/generated/types.ts';
import type { ClientBase } from '../client.ts';

export interface Completer {
  /** Beginnings that fit the end of the line, and that end. */
  complete(line: string): Promise<readonly [readonly string[], string]>;
  /** Every command, sorted. */
  commands(): Promise<readonly string[]>;
  /** The arguments of the command that the line begins with, those of the branches it chooses included; null: no command. */
  arguments(line: string): Promise<readonly Argument[] | null>;
}

/** An argument of a command, as introspection tells it. */
export interface Argument {
  readonly name: string;
  readonly isOptional: boolean;
  /** Values that there are to choose from; none: any of `type`. */
  readonly values: readonly string[];
  readonly type: string;
}

interface Member {
  readonly name: string;
  readonly type: string;
  /** There is one, if only null: the member may be left out. */
  readonly default?: unknown;
}

/** Arguments whose values are names of nodes, jobs or exports. */
export const NODE_ARGUMENTS =
  /^(node|node-name|device|target|file|backing|top-node|base-node|replaces|overlay|parent|source)$/;

export function createCompleter(client: ClientBase): Completer {
  let schema: Promise<ReadonlyMap<string, SchemaInfo>> | null = null;
  const types = (): Promise<ReadonlyMap<string, SchemaInfo>> => {
    schema ??= client
      .execute('query-qmp-schema')
      .then((entries) => new Map(entries.map((entry) => [entry.name, entry])));
    return schema;
  };
  const names = async (command: string, argument: string): Promise<string[]> => {
    if (argument === 'id' && command.startsWith('job-'))
      return (await client.execute('query-jobs')).map((job) => job.id);
    if (argument === 'id' && command.startsWith('block-export'))
      return (await client.execute('query-block-exports')).map((entry) => entry.id);
    if (argument === 'device' && command.startsWith('block-job-'))
      return (await client.execute('query-jobs')).map((job) => job.id);
    if (!NODE_ARGUMENTS.test(argument)) return [];
    const nodes = await client.execute('query-named-block-nodes', { flat: true });
    return nodes.map((node) => node['node-name'] ?? '').filter((name) => name !== '');
  };
  const commands = async (): Promise<string[]> =>
    [...(await types()).values()]
      .filter((entry) => entry['meta-type'] === 'command')
      .map(({ name }) => name)
      .sort();
  const argumentsOf = async (line: string): Promise<readonly Argument[] | null> => {
    const all = await types();
    const words = line.split(/\s+/);
    const entry = all.get(words[0] ?? '');
    if (entry?.['meta-type'] !== 'command') return null;
    return membersAt(all, entry['arg-type'], [], words).map((member) => ({
      name: member.name,
      isOptional: 'default' in member,
      values: valuesOf(all, member.type),
      type: kindOf(all.get(member.type)),
    }));
  };
  const complete = async (line: string): Promise<readonly [readonly string[], string]> => {
    const all = await types();
    const words = line.split(/\s+/);
    const last = words.at(-1) ?? '';
    if (words.length <= 1) {
      return [fitting(await commands(), last, ' '), last];
    }
    const command = words[0] ?? '';
    const entry = all.get(command);
    if (entry?.['meta-type'] !== 'command') return [[], last];
    const equals = last.indexOf('=');
    if (equals < 0) {
      const given = new Set(words.slice(1, -1).map((word) => word.split('=')[0]));
      const members = membersAt(all, entry['arg-type'], last.split('.').slice(0, -1), words);
      const prefix = last.includes('.') ? last.slice(0, last.lastIndexOf('.') + 1) : '';
      const candidates = members.map(({ name }) => prefix + name).filter((name) => !given.has(name));
      return [fitting(candidates, last, '='), last];
    }
    const key = last.slice(0, equals);
    const begun = last.slice(equals + 1);
    const path = key.split('.');
    const member = membersAt(all, entry['arg-type'], path.slice(0, -1), words).find(
      ({ name }) => name === path.at(-1),
    );
    const values = [...valuesOf(all, member?.type), ...(await names(command, path.at(-1) ?? ''))];
    return [fitting([...new Set(values)], begun, ' '), begun];
  };
  return {
    complete: (line) => complete(line).catch(() => [[], ''] as const),
    commands,
    arguments: argumentsOf,
  };
}

function fitting(candidates: readonly string[], begun: string, after: string): string[] {
  return candidates.filter((name) => name.startsWith(begun)).map((name) => name + after);
}

/** Members of a type, those of the branch that the line has chosen included, at the end of `path`. */
function membersAt(
  types: ReadonlyMap<string, SchemaInfo>,
  type: string,
  path: readonly string[],
  words: readonly string[],
  /** What lies around the type on the line: "file.". */
  prefix = '',
): Member[] {
  const entry = types.get(type);
  if (entry === undefined) return [];
  if (entry['meta-type'] === 'alternate')
    return entry.members.flatMap((member) => membersAt(types, member.type, path, words, prefix));
  if (entry['meta-type'] !== 'object') return [];
  const members: Member[] = [...entry.members];
  const tag = entry.tag;
  if (tag !== undefined) {
    const chosen = words.map((word) => word.split('=')).find(([key]) => key === prefix + tag)?.[1];
    const branch = entry.variants?.find((variant) => variant.case === chosen);
    if (branch !== undefined) members.push(...membersAt(types, branch.type, [], words, prefix));
  }
  const [first, ...rest] = path;
  if (first === undefined) return members;
  const inner = members.find(({ name }) => name === first);
  return inner === undefined ? [] : membersAt(types, inner.type, rest, words, `${prefix}${first}.`);
}

function valuesOf(types: ReadonlyMap<string, SchemaInfo>, type: string | undefined): string[] {
  const entry = type === undefined ? undefined : types.get(type);
  if (entry === undefined) return [];
  if (entry['meta-type'] === 'enum') return entry.members.map(({ name }) => name);
  if (entry['meta-type'] === 'builtin') return entry.name === 'bool' ? ['true', 'false'] : [];
  if (entry['meta-type'] === 'alternate')
    return entry.members.flatMap((member) => valuesOf(types, member.type));
  return [];
}

/** What a value of the type is, in a word: names of types are no part of the introspection. */
function kindOf(entry: SchemaInfo | undefined): string {
  switch (entry?.['meta-type']) {
    case 'builtin':
      return entry['json-type'];
    case 'array':
      return 'array';
    case 'enum':
      return 'string';
    case 'alternate':
      return 'value';
    default:
      return 'object';
  }
}
