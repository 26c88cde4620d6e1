/**
 * Introspection against the original's: a superset of it. Type names mean nothing, so types are compared by structure.
 * What the original has is here too, or in left-out.ts with a reason; what it does not have says since when it is there
 * (x-since in the schema).
 */

import path from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { INTROSPECTION } from '../../schema/generated/introspection.ts';
import type { SchemaInfo } from '../../schema/generated/types.ts';
import { introspectionNumbers } from '../../schema/generator/emit-introspection.ts';
import { loadModel } from '../../schema/generator/model.ts';
import { type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import { missingPeer, requirePeer } from '../peers/requires.ts';
import { LEFT_OUT } from './left-out.ts';

const model = loadModel(path.resolve(import.meta.dirname, '../../schema'));

/** The definitions of the schema by the numbers that introspection gives them. */
const definitions = new Map(
  [...introspectionNumbers(model)].map(([name, number]) => [number, model.types.get(name)]),
);

/** Members that are in a type which others of the original's drivers or commands share, and so cannot have a release. */
const SHARED = new Set(['blockdev-add/vhdx.backing', 'blockdev-add/vpc.backing']);

/** Where a later release of the original has made something else of what 7.2 has: by place, with that release. */
const CHANGED: Readonly<Record<string, string>> = {
  'blockdev-create.options/luks.file: optional': '9.0: it may be left out where there is a header of its own',
  'query-block-jobs returns[].type: kind': '8.2: an enumeration, which discriminates',
  'query-block-jobs returns[]: tag': '8.2: mirror jobs tell more',
  'block-export-add.iothread: kind': '11.0: one or several',
  'query-block returns[].inserted.node-name: optional': '10.0: always there',
};

let original: RunningDaemon | null = null;
let theirs: ReadonlyMap<string, SchemaInfo>;
const ours = byName(INTROSPECTION);

beforeAll(async () => {
  if (missingPeer(['qemu-storage-daemon']) !== null) return;
  original = await startDaemon('qemu-storage-daemon');
  const client = await original.connect();
  await client.negotiate();
  theirs = byName((await client.execute('query-qmp-schema')) as SchemaInfo[]);
  client.close();
});

afterAll(async () => {
  await original?.stop();
});

function byName(schema: readonly SchemaInfo[]): ReadonlyMap<string, SchemaInfo> {
  return new Map(schema.map((entity) => [entity.name, entity]));
}

function lookUp(schema: ReadonlyMap<string, SchemaInfo>, name: string): SchemaInfo {
  const entity = schema.get(name);
  if (entity === undefined) throw new Error(`no type ${name}`);
  return entity;
}

/** Since when the original (or ours alone) has a member or value; null: 7.2 has it. */
function sinceOf(number: string, name: string): string | null {
  const type = definitions.get(number);
  if (type?.kind === 'enum') return type.values.find((value) => value.name === name)?.since ?? null;
  if (type?.kind === 'object') return type.members.find((member) => member.name === name)?.since ?? null;
  return null;
}

/** Since when a branch is there: since when the value is that selects it. */
function sinceOfBranch(number: string, value: string): string | null {
  const type = definitions.get(number);
  if (type?.kind !== 'object' || type.tag === null) return null;
  const use = type.members.find((member) => member.name === type.tag)?.use;
  const values = use?.kind === 'named' ? model.types.get(use.name) : undefined;
  return values?.kind === 'enum' ? (values.values.find(({ name }) => name === value)?.since ?? null) : null;
}

/** Compares types by structure and notes where they differ. */
class Comparison {
  readonly differences: string[] = [];
  readonly leftOut = new Set<string>();
  readonly changed = new Set<string>();
  readonly #seen = new Set<string>();

  compare(ourName: string, theirName: string, place: string): void {
    const key = `${ourName} ${theirName}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    const a = lookUp(ours, ourName);
    const b = lookUp(theirs, theirName);
    this.#equal(a['meta-type'], b['meta-type'], `${place}: kind`);
    this.#equal(a.features ?? [], b.features ?? [], `${place}: features`);
    if (a['meta-type'] === 'builtin' && b['meta-type'] === 'builtin') {
      this.#equal(a.name, b.name, `${place}: name`);
      this.#equal(a['json-type'], b['json-type'], `${place}: JSON type`);
    } else if (a['meta-type'] === 'enum' && b['meta-type'] === 'enum') {
      this.#compareEnums(a, b, place);
    } else if (a['meta-type'] === 'array' && b['meta-type'] === 'array') {
      this.#equal(a.name, `[${a['element-type']}]`, `${place}: name of array`);
      this.compare(a['element-type'], b['element-type'], `${place}[]`);
    } else if (a['meta-type'] === 'alternate' && b['meta-type'] === 'alternate') {
      this.#equal(a.members.length, b.members.length, `${place}: choices`);
      a.members.forEach((choice, i) => {
        const kind = lookUp(ours, choice.type)['meta-type'];
        const match = b.members.find(
          (other) =>
            lookUp(theirs, other.type)['meta-type'] === kind &&
            (kind !== 'builtin' || other.type === choice.type),
        );
        if (match === undefined) this.differences.push(`${place}: choice ${i} is not there`);
        else this.compare(choice.type, match.type, `${place}<${i}>`);
      });
    } else if (a['meta-type'] === 'object' && b['meta-type'] === 'object') {
      this.#compareObjects(a, b, place);
    }
  }

  #compareEnums(
    a: Extract<SchemaInfo, { 'meta-type': 'enum' }>,
    b: Extract<SchemaInfo, { 'meta-type': 'enum' }>,
    place: string,
  ): void {
    const known = new Map(b.members.map((member) => [member.name, member.features ?? []]));
    for (const { name, features = [] } of a.members) {
      if (!this.#isNew(known.has(name), sinceOf(a.name, name), `${place}=${name}`))
        this.#equal(features, known.get(name), `${place}=${name}: features`);
      known.delete(name);
    }
    for (const name of known.keys()) this.#missing(`${place}=${name}`, name);
    this.#equal([...a.values].sort(), a.members.map((member) => member.name).sort(), `${place}: values`);
  }

  #compareObjects(
    a: Extract<SchemaInfo, { 'meta-type': 'object' }>,
    b: Extract<SchemaInfo, { 'meta-type': 'object' }>,
    place: string,
  ): void {
    const known = new Map(b.members.map((member) => [member.name, member]));
    for (const member of a.members) {
      const here = `${place}.${member.name}`;
      const match = known.get(member.name);
      known.delete(member.name);
      if (SHARED.has(here)) continue;
      if (this.#isNew(match !== undefined, sinceOf(a.name, member.name), here) || match === undefined)
        continue;
      this.#equal('default' in member, 'default' in match, `${here}: optional`);
      this.#equal(member.features ?? [], match.features ?? [], `${here}: features`);
      this.compare(member.type, match.type, here);
    }
    for (const name of known.keys()) this.#missing(`${place}.${name}`, name);
    this.#equal(a.tag, b.tag, `${place}: tag`);
    const branches = new Map(b.variants?.map((variant) => [variant.case, variant.type]));
    for (const variant of a.variants ?? []) {
      const here = `${place}/${variant.case}`;
      const match = branches.get(variant.case);
      branches.delete(variant.case);
      if (b.tag === undefined && a.tag !== undefined) continue;
      if (this.#isNew(match !== undefined, sinceOfBranch(a.name, variant.case), here) || match === undefined)
        continue;
      this.compare(variant.type, match, here);
    }
    for (const name of branches.keys()) this.#missing(`${place}/${name}`, name);
  }

  /** Whether the original does not have it; complains when the schema says something else. */
  #isNew(isKnown: boolean, since: string | null, what: string): boolean {
    if (isKnown === (since === null)) return !isKnown;
    this.differences.push(isKnown ? `${what}: is in 7.2, not since ${since}` : `${what}: has no x-since`);
    return true;
  }

  #missing(what: string, name: string): void {
    const rule = LEFT_OUT.find(({ names }) => names.includes(name) || names.includes(what));
    if (rule === undefined) this.differences.push(`${what}: missing`);
    else this.leftOut.add(names(rule.names, name, what));
  }

  #equal(a: unknown, b: unknown, what: string): void {
    const [left, right] = [JSON.stringify(a), JSON.stringify(b)];
    if (left === right) return;
    if (Object.hasOwn(CHANGED, what)) this.changed.add(what);
    else this.differences.push(`${what}: ${left} is not ${right}`);
  }
}

function names(list: readonly string[], name: string, what: string): string {
  return list.includes(what) ? what : name;
}

test("introspection is a superset of the original's", (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const comparison = new Comparison();
  const since = new Map(model.commands.map((command) => [command.name, command.since]));
  for (const entity of INTROSPECTION) {
    const other = theirs.get(entity.name);
    if (entity['meta-type'] === 'command') {
      if (since.get(entity.name) !== null) {
        expect(other, `${entity.name} has an x-since`).toBe(undefined);
        continue;
      }
      if (other?.['meta-type'] !== 'command') throw new Error(`no command ${entity.name}`);
      expect(entity.features ?? [], entity.name).toEqual(other.features ?? []);
      expect(entity['allow-oob'] ?? false, entity.name).toBe(other['allow-oob'] ?? false);
      comparison.compare(entity['arg-type'], other['arg-type'], entity.name);
      comparison.compare(entity['ret-type'], other['ret-type'], `${entity.name} returns`);
    } else if (entity['meta-type'] === 'event') {
      // Its daemon sends this one without listing it.
      if (entity.name === 'PR_MANAGER_STATUS_CHANGED') continue;
      if (other?.['meta-type'] !== 'event') throw new Error(`no event ${entity.name}`);
      comparison.compare(entity['arg-type'], other['arg-type'], entity.name);
    }
  }
  for (const entity of theirs.values()) {
    if (!['command', 'event'].includes(entity['meta-type']) || ours.has(entity.name)) continue;
    const rule = LEFT_OUT.find((each) => each.names.includes(entity.name));
    if (rule === undefined) comparison.differences.push(`${entity['meta-type']} ${entity.name}: missing`);
    else comparison.leftOut.add(entity.name);
  }
  expect(comparison.differences).toEqual([]);
  // What is excused must be so for a reason that still holds.
  expect(
    LEFT_OUT.flatMap((rule) => rule.names)
      .filter((name) => !comparison.leftOut.has(name))
      .sort(),
  ).toEqual([]);
  expect(Object.keys(CHANGED).filter((place) => !comparison.changed.has(place))).toEqual([]);
});

test('nothing is listed that no command or event leads to, and nothing is missing', () => {
  const mentioned = new Set<string>();
  const visit = (name: string): void => {
    if (mentioned.has(name)) return;
    mentioned.add(name);
    const type = lookUp(ours, name);
    if (type['meta-type'] === 'array') visit(type['element-type']);
    if (type['meta-type'] === 'alternate') for (const choice of type.members) visit(choice.type);
    if (type['meta-type'] !== 'object') return;
    for (const member of type.members) visit(member.type);
    for (const variant of type.variants ?? []) visit(variant.type);
  };
  for (const entity of INTROSPECTION) {
    if (entity['meta-type'] === 'command') [entity['arg-type'], entity['ret-type']].forEach(visit);
    if (entity['meta-type'] === 'event') visit(entity['arg-type']);
  }
  const types = INTROSPECTION.filter((entity) => !['command', 'event'].includes(entity['meta-type']));
  expect(types.map((type) => type.name).sort()).toEqual([...mentioned].sort());
});

test('only what works is listed', () => {
  const variantsOf = (command: string): readonly string[] => {
    const entity = lookUp(ours, command);
    const args = entity['meta-type'] === 'command' ? lookUp(ours, entity['arg-type']) : entity;
    return args['meta-type'] === 'object' ? (args.variants ?? []).map((variant) => variant.case) : [];
  };
  // nvme, nvme-io_uring, virtio-blk-vfio-pci and virtio-blk-vhost-vdpa are known by name: opening says what is missing.
  expect(variantsOf('blockdev-add')).toEqual([
    'blkdebug',
    'blklogwrites',
    'blkreplay',
    'blkverify',
    'bochs',
    'cache',
    'cloop',
    'compress',
    'copy-before-write',
    'copy-on-read',
    'dmg',
    'file',
    'ftp',
    'ftps',
    'gluster',
    'host_cdrom',
    'host_device',
    'http',
    'https',
    'io_uring',
    'iscsi',
    'luks',
    'nbd',
    'nfs',
    'null-aio',
    'null-co',
    'nvme',
    'nvme-io_uring',
    'parallels',
    'preallocate',
    'qcow',
    'qcow2',
    'qed',
    'quorum',
    'raw',
    'rbd',
    'readahead',
    'replication',
    'retry',
    's3',
    'snapshot-access',
    'ssh',
    'throttle',
    'vdi',
    'vhdx',
    'virtio-blk-vfio-pci',
    'virtio-blk-vhost-user',
    'virtio-blk-vhost-vdpa',
    'vmdk',
    'vpc',
    'vvfat',
  ]);
  expect(variantsOf('block-export-add')).toEqual(['nbd', 'vhost-user-blk', 'fuse']);
});
