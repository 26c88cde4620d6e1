/** The generator refuses schemas that make no sense, and says where. */

import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { loadModel } from '../../schema/generator/model.ts';

const schemaFolder = path.resolve(import.meta.dirname, '../../schema');
let folder = '';

beforeEach(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'schema-'));
  cpSync(schemaFolder, folder, {
    recursive: true,
    filter: (file) => !/generat/.test(path.relative(schemaFolder, file)),
  });
});

afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** Replaces text in a module of the copy; the text must be there. */
function edit(module: string, from: string, to: string): void {
  const file = path.join(folder, `${module}.json`);
  const text = readFileSync(file, 'utf8');
  expect(text).toContain(from);
  writeFileSync(file, text.replace(from, to));
}

test('the schema as it is loads', () => {
  const model = loadModel(folder);
  expect(model.commands.map((command) => command.name)).toContain('blockdev-add');
  const raw = model.types.get('BlockdevOptionsRaw');
  expect(raw?.kind === 'object' && raw.members.map((member) => member.name)).toEqual([
    'file',
    'offset',
    'size',
  ]);
});

test.each([
  [
    'a keyword that the dialect does not have',
    'common',
    '"type": "string"',
    '"type": "string", "pattern": "x"',
    /common\.json/,
  ],
  [
    'a reference to nothing',
    'block-core',
    '#/$defs/BlockdevRef"',
    '#/$defs/BlockdevRefs"',
    /no type #\/\$defs\/BlockdevRefs/,
  ],
  [
    'a type of another module without its name',
    'block-core',
    'common.json#/$defs/OnOffAuto',
    '#/$defs/OnOffAuto',
    /no type/,
  ],
  [
    'a branch that is no value',
    'block-core',
    '"raw": { "$ref"',
    '"rax": { "$ref"',
    /branch rax is no value of driver/,
  ],
  [
    'a discriminator that is no member',
    'block-core',
    '"discriminator": "driver"',
    '"discriminator": "drv"',
    /drv/,
  ],
  ['a type that is defined twice', 'common', '"OnOffAuto"', '"IoOperationType"', /IoOperationType is in/],
  [
    'an alternate that JSON cannot tell apart',
    'block-core',
    '"reference": { "type": "string", "description": "node-name of a node that exists" }',
    '"reference": { "$ref": "#/$defs/BlockdevDriver" }, "x": { "type": "string" }',
    /not distinct/,
  ],
])('%s is refused', (_what, module, from, to, message) => {
  edit(module, from, to);
  expect(() => loadModel(folder)).toThrow(message);
});

test('a module without a place in the order is refused', () => {
  writeFileSync(path.join(folder, 'extra.json'), '{}');
  expect(() => loadModel(folder)).toThrow(/extra/);
});
