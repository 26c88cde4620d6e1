/** Everything in the schema says what it is: the reference, the help of options and the clients are made from that. */

import path from 'node:path';
import { expect, test } from 'vitest';
import { loadModel, type Model, type TypeDefinition } from '../../schema/generator/model.ts';

const model = loadModel(path.resolve(import.meta.dirname, '../../schema'));

function partsOf(type: TypeDefinition): readonly { readonly name: string; readonly description: string }[] {
  switch (type.kind) {
    case 'enum':
      return type.values;
    case 'alternate':
      return type.choices;
    case 'object':
      return type.members;
  }
}

/** Places without a description, or with one that says no more than the name does. */
function undescribed({ types, commands, events }: Model): string[] {
  const places: (readonly [place: string, name: string, description: string])[] = [];
  for (const type of types.values()) {
    places.push([type.name, type.name, type.description]);
    for (const { name, description } of partsOf(type))
      places.push([`${type.name}.${name}`, name, description]);
  }
  for (const { name, description, returns, returnsDescription } of commands) {
    places.push([name, name, description]);
    if (returns !== null) places.push([`${name} returns`, name, returnsDescription]);
  }
  for (const { name, description } of events) places.push([name, name, description]);
  return places
    .filter(
      ([, name, description]) =>
        description.trim() === '' || description.toLowerCase() === name.toLowerCase(),
    )
    .map(([place]) => place);
}

test('every command, event, type, member, value and result is described', () => {
  expect(undescribed(model)).toEqual([]);
});

test('a member without a description is found', () => {
  const types = new Map(model.types);
  const raw = types.get('BlockdevOptionsRaw');
  if (raw?.kind !== 'object') throw new Error('there is no such type');
  const members = raw.members.map((member) =>
    member.name === 'offset' ? { ...member, description: '' } : member,
  );
  types.set('BlockdevOptionsRaw', { ...raw, members });
  expect(undescribed({ ...model, types })).toEqual(['BlockdevOptionsRaw.offset']);
});
