/** The tree: paths, life cycle of objects, and the table of types. */

import { describe, expect, test } from 'vitest';
import type { ObjectOptions } from '../../schema/generated/types.ts';
import { isQomSubtype, QOM_TYPES, qomProperties } from '../../src/objects/types.ts';
import { messageOf, treeWith } from './helpers.ts';

const secret = (id: string): ObjectOptions => ({ 'qom-type': 'secret', id, data: 'x' });

/** One object of each type that needs no files. */
const everyType: readonly ObjectOptions[] = [
  secret('s'),
  { 'qom-type': 'authz-simple', id: 'as', identity: 'x' },
  { 'qom-type': 'authz-list', id: 'al' },
  { 'qom-type': 'iothread', id: 'io' },
  { 'qom-type': 'throttle-group', id: 'tg' },
];

test('every object has an accessor for each property of its type', async () => {
  const tree = await treeWith(...everyType);
  for (const { 'qom-type': typeName, id } of everyType) {
    const node = tree.resolve(`/objects/${id}`);
    if (node === null || node === 'ambiguous' || node.kind !== 'object') throw new Error(`no object ${id}`);
    const names = qomProperties(typeName).map(([name]) => name);
    expect(Object.keys(node.object.accessors).concat('type').sort()).toEqual(names.toSorted());
    for (const accessor of Object.values(node.object.accessors)) expect(accessor.get()).toBeDefined();
  }
});

test('every type has a known parent, and user-creatable types are found as such', () => {
  for (const [name, type] of Object.entries(QOM_TYPES)) {
    if (type.parent !== null) expect(Object.keys(QOM_TYPES)).toContain(type.parent);
    expect(isQomSubtype(name, 'user-creatable')).toBe(
      type.userCreatable === true || name === 'user-creatable',
    );
    expect(isQomSubtype(name, 'object')).toBe(type.isInterface !== true);
  }
});

describe('paths', () => {
  test('absolute, relative, with needless slashes', async () => {
    const tree = await treeWith(secret('s'));
    const object = tree.resolve('/objects/s');
    expect(object).toMatchObject({ kind: 'object', path: '/objects/s' });
    for (const path of ['objects/s', 's', '//objects//s/', 's/']) expect(tree.resolve(path)).toBe(object);
    for (const path of ['/s', '/objects/s/data', 'x', '/objects/x', 'type'])
      expect(tree.resolve(path)).toBeNull();
    expect(tree.resolve('/')).toMatchObject({ kind: 'container', path: '/' });
    expect(tree.resolve('')).toBe('ambiguous');
  });

  test('a name that fits two places is ambiguous', async () => {
    const tree = await treeWith(secret('s'));
    tree.publish('chardevs', 's', { typeName: 'chardev-null', accessors: {} });
    expect(tree.resolve('s')).toBe('ambiguous');
    expect(tree.resolve('objects/s')).toMatchObject({ path: '/objects/s' });
    tree.withdraw('chardevs', 's');
    expect(tree.resolve('s')).toMatchObject({ path: '/objects/s' });
  });
});

describe('life cycle', () => {
  test('an id can be used again after deletion', async () => {
    const tree = await treeWith(secret('s'));
    expect(await messageOf(() => tree.add(secret('s')))).toMatch(/^attempt to add duplicate property 's'/);
    tree.delete('s');
    expect(tree.find('s')).toBeNull();
    await tree.add(secret('s'));
  });

  test('of two objects added at once under one id the second fails', async () => {
    const tree = await treeWith();
    const outcomes = await Promise.allSettled([tree.add(secret('s')), tree.add(secret('s'))]);
    expect(outcomes.map((outcome) => outcome.status)).toEqual(['fulfilled', 'rejected']);
  });

  test('an object that is used cannot be deleted', async () => {
    const tree = await treeWith({ 'qom-type': 'throttle-group', id: 't' });
    const releases = [tree.use('t'), tree.use('t')];
    for (const release of releases) {
      expect(await messageOf(() => tree.delete('t'))).toBe("object 't' is in use, can not be deleted");
      release();
      release(); // twice counts once
    }
    tree.delete('t');
  });

  test('look-ups name the object and what is wrong with it', async () => {
    const tree = await treeWith(...everyType);
    expect(await messageOf(() => tree.secret('x'))).toBe("No secret with id 'x'");
    expect(await messageOf(() => tree.secret('io'))).toBe("Object with id 'io' is not a secret");
    expect(await messageOf(() => tree.tlsCreds('x'))).toBe("No TLS credentials with id 'x'");
    expect(await messageOf(() => tree.tlsCreds('s'))).toBe("Object with id 's' is not TLS credentials");
    expect(await messageOf(() => tree.iothread('s'))).toBe('iothread "s" not found');
    expect(tree.iothread('io')['poll-max-ns']).toBe(32768);
    expect(tree.useThrottleGroup('tg')?.group.limits['iops-total']).toBe(0);
    expect(tree.useThrottleGroup('s')).toBeNull();
  });
});
