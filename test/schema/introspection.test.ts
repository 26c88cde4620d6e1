/**
 * Introspection against the original's: every command and event of ours must be there with the same arguments and
 * results. Type names mean nothing, so types are compared by structure. Values of enumerations and branches of
 * unions may be fewer than the original's: only what works is listed.
 */

import { afterAll, beforeAll, expect, test } from 'vitest';
import { INTROSPECTION } from '../../schema/generated/introspection.ts';
import type { SchemaInfo } from '../../schema/generated/types.ts';
import { type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import { missingPeer, requirePeer } from '../peers/requires.ts';
import { OWN_DRIVERS, ownOptions } from './own-drivers.ts';

/** Commands that the original's 7.2 does not have. Newer releases of it do, except for those that start with x-. */
const NEWER_COMMANDS = new Set([
  'block-job-change',
  'x-config-save',
  'x-query-block-exports',
  'x-query-block-graph',
]);

/** What the original's 7.2 does not have: [owner, member]. Newer releases of it do, except for what starts with x-. */
const NEWER = new Set([
  'block-export-add x-throttle-group',
  // Ours alone: a manager that knows it may rely on it.
  'blockdev-add untrusted',
  'nbd-server-start handshake-max-seconds',
  'blockdev-add/qcow2 discard-no-unref',
  'blockdev-add/vhdx backing',
  'blockdev-add/vpc backing',
  'blockdev-create.options/vpc azure',
  'blockdev-backup discard-source',
  'drive-backup discard-source',
  'transaction.actions[]/blockdev-backup.data discard-source',
  'transaction.actions[]/drive-backup.data discard-source',
  'blockdev-add/luks header',
  'blockdev-create.options/luks header',
  // Left out where there is a header of its own.
  'blockdev-create.options/luks file',
]);

/** Values that no release of the original has: what cryptsetup's volumes may be made with, and a type by its real name. */
const OWN_VALUES = new Set(['authz-list-file', 'lrw', 'benbi', 'whirlpool']);

for (const option of ownOptions()) NEWER.add(option);

/** Optional results of the original that nothing here can produce yet, so that they are not listed. */
const NOT_PRODUCED = new Set(['format-specific']);

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

/** Compares types by structure and notes where they differ. `direction`: who makes such values. */
class Comparison {
  readonly differences: string[] = [];
  readonly #seen = new Set<string>();

  compare(ourName: string, theirName: string, place: string, direction: 'argument' | 'result'): void {
    const key = `${ourName} ${theirName} ${direction}`;
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
      const known = new Map(b.members.map((member) => [member.name, member.features ?? []]));
      for (const value of a.members) {
        if (OWN_VALUES.has(value.name) || OWN_DRIVERS.has(value.name)) continue;
        this.#equal(value.features ?? [], known.get(value.name), `${place}: value ${value.name}`);
      }
      this.#equal([...a.values].sort(), a.members.map((member) => member.name).sort(), `${place}: values`);
    } else if (a['meta-type'] === 'array' && b['meta-type'] === 'array') {
      this.#equal(a.name, `[${a['element-type']}]`, `${place}: name of array`);
      this.compare(a['element-type'], b['element-type'], `${place}[]`, direction);
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
        else this.compare(choice.type, match.type, `${place}<${i}>`, direction);
      });
    } else if (a['meta-type'] === 'object' && b['meta-type'] === 'object') {
      this.#compareObjects(a, b, place, direction);
    }
  }

  #compareObjects(
    a: Extract<SchemaInfo, { 'meta-type': 'object' }>,
    b: Extract<SchemaInfo, { 'meta-type': 'object' }>,
    place: string,
    direction: 'argument' | 'result',
  ): void {
    const known = new Map(b.members.map((member) => [member.name, member]));
    for (const member of a.members) {
      const here = `${place}.${member.name}`;
      const match = known.get(member.name);
      known.delete(member.name);
      if (NEWER.has(`${place} ${member.name}`)) continue;
      if (match === undefined) {
        this.differences.push(`${here}: unknown to the original`);
        continue;
      }
      this.#equal('default' in member, 'default' in match, `${here}: optional`);
      this.#equal(member.features ?? [], match.features ?? [], `${here}: features`);
      this.compare(member.type, match.type, here, direction);
    }
    for (const [name, member] of known) {
      const isLeftOut = direction === 'result' && 'default' in member && NOT_PRODUCED.has(name);
      if (!isLeftOut) this.differences.push(`${place}.${name}: missing`);
    }
    this.#equal(a.tag, b.tag, `${place}: tag`);
    const branches = new Map(b.variants?.map((variant) => [variant.case, variant.type]));
    for (const variant of a.variants ?? []) {
      if (OWN_VALUES.has(variant.case) || OWN_DRIVERS.has(variant.case)) continue;
      const match = branches.get(variant.case);
      if (match === undefined) this.differences.push(`${place}: no branch ${variant.case}`);
      else this.compare(variant.type, match, `${place}/${variant.case}`, direction);
    }
  }

  #equal(a: unknown, b: unknown, what: string): void {
    const [left, right] = [JSON.stringify(a), JSON.stringify(b)];
    if (left !== right) this.differences.push(`${what}: ${left} is not ${right}`);
  }
}

test('commands and events agree with the original in structure', (context) => {
  requirePeer(context, 'qemu-storage-daemon');
  const comparison = new Comparison();
  for (const entity of INTROSPECTION) {
    const other = theirs.get(entity.name);
    if (NEWER_COMMANDS.has(entity.name)) continue;
    if (entity['meta-type'] === 'command') {
      if (other?.['meta-type'] !== 'command') throw new Error(`no command ${entity.name}`);
      expect(entity.features ?? [], entity.name).toEqual(other.features ?? []);
      expect(entity['allow-oob'] ?? false, entity.name).toBe(other['allow-oob'] ?? false);
      comparison.compare(entity['arg-type'], other['arg-type'], entity.name, 'argument');
      comparison.compare(entity['ret-type'], other['ret-type'], `${entity.name} returns`, 'result');
    } else if (entity['meta-type'] === 'event') {
      if (other?.['meta-type'] !== 'event') throw new Error(`no event ${entity.name}`);
      comparison.compare(entity['arg-type'], other['arg-type'], entity.name, 'result');
    }
  }
  expect(comparison.differences).toEqual([]);
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
