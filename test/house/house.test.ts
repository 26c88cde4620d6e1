/** The rules of the house hold for the whole tree, and every rule is able to fail (canaries). */

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { TREE_RULES } from './rooms.ts';
import { codeOnly, importsOf, RULES, type SourceFile } from './rules.ts';

const root = path.resolve(import.meta.dirname, '../..');

function sources(): SourceFile[] {
  return ['src', 'daemon', 'client', 'console', 'bench', 'docs', 'schema', 'test'].flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true, encoding: 'utf8' })
      .map((name) => path.join(folder, name))
      .filter((name) => name.endsWith('.ts') && !name.startsWith('schema/generated/'))
      .map((name) => ({ path: name, text: readFileSync(path.join(root, name), 'utf8') })),
  );
}

const files = sources();

test('there is something to look at', () => {
  expect(files.length).toBeGreaterThan(10);
});

describe('the tree', () => {
  for (const rule of RULES) {
    test(rule.name, () => {
      const complaints = files.flatMap((file) =>
        rule.check(file).map((complaint) => `${file.path}: ${complaint}`),
      );
      expect(complaints).toEqual([]);
    });
  }
});

describe('the tree as a whole', () => {
  for (const rule of TREE_RULES) test(rule.name, () => expect(rule.check(files)).toEqual([]));
});

/** For each rule about the tree, a tree that breaks it and one that comes close and does not. */
const TREE_CANARIES: Readonly<
  Record<string, { readonly bad: readonly SourceFile[]; readonly good: readonly SourceFile[] }>
> = {
  'between the rooms of a folder imports go one way': {
    bad: [{ path: 'src/block/graph/x.ts', text: "import { a } from '../io/size.ts';" }],
    good: [
      { path: 'src/block/io/x.ts', text: "import { a } from '../graph/chain.ts';" },
      { path: 'src/block/contract/x.ts', text: "import type { A } from '../graph/node.ts';" },
    ],
  },
  'no circles of imports of values': {
    bad: [
      { path: 'src/aio/x.ts', text: "import { a } from './y.ts';" },
      { path: 'src/aio/y.ts', text: "import { a } from './z.ts';" },
      { path: 'src/aio/z.ts', text: "import { a } from './x.ts';" },
    ],
    good: [
      { path: 'src/aio/x.ts', text: "import { a } from './y.ts';" },
      { path: 'src/aio/y.ts', text: "import type { A } from './x.ts';" },
    ],
  },
  'a folder holds few files': {
    bad: Array.from({ length: 19 }, (_, index) => ({ path: `src/aio/x${index}.ts`, text: '' })),
    good: Array.from({ length: 18 }, (_, index) => ({ path: `src/aio/x${index}.ts`, text: '' })),
  },
};

/** For each rule, files that break it and files that come close and do not. */
const CANARIES: Readonly<
  Record<string, { readonly bad: readonly SourceFile[]; readonly good: readonly SourceFile[] }>
> = {
  'imports go down': {
    bad: [
      { path: 'src/block/x.ts', text: "import { a } from '../drivers/table.ts';" },
      { path: 'src/block/x.ts', text: "import type { a } from '../qmp/session.ts';" },
      { path: 'src/aio/x.ts', text: "import {\n  a,\n} from '../block/node.ts';" },
      { path: 'src/drivers/formats/raw.ts', text: "export { a } from '../../jobs/job.ts';" },
      { path: 'src/errors/x.ts', text: "const a = await import('../aio/engine.ts');" },
      { path: 'src/block/x.ts', text: "import { a } from '../../test/helper.ts';" },
      { path: 'src/block/x.ts', text: "import { validate } from '../../schema/generated/validators.ts';" },
    ],
    good: [
      { path: 'src/drivers/table.ts', text: "import { a } from '../block/node.ts';" },
      { path: 'src/block/x.ts', text: "import { a } from './node.ts';" },
      { path: 'src/block/x.ts', text: "// import { a } from '../qmp/session.ts';" },
      { path: 'src/block/x.ts', text: "import type { A } from '../../schema/generated/types.ts';" },
      { path: 'src/qmp/x.ts', text: "import { validate } from '../../schema/generated/validators.ts';" },
      { path: 'test/block/x.test.ts', text: "import { a } from '../../src/qmp/session.ts';" },
    ],
  },
  'koffi is imported in src/aio only': {
    bad: [{ path: 'src/block/x.ts', text: "import koffi from 'koffi';" }],
    good: [{ path: 'src/aio/x.ts', text: "import koffi from 'koffi';" }],
  },
  'no default exports': {
    bad: [{ path: 'src/block/x.ts', text: 'export default function f() {}' }],
    good: [
      { path: 'vitest.config.ts', text: 'export default {};' },
      { path: 'src/block/x.ts', text: '// export default' },
    ],
  },
  'no any': {
    bad: [
      { path: 'src/block/x.ts', text: 'function f(x: any) {}' },
      { path: 'src/block/x.ts', text: 'const y = x as any;' },
      { path: 'src/block/x.ts', text: 'const y: Map<string, any> = z;' },
      { path: 'src/block/x.ts', text: 'type F = () => any;' },
    ],
    good: [
      { path: 'src/aio/ffi.ts', text: 'const y = x as any;' },
      { path: 'src/block/x.ts', text: "const s = 'as any'; // takes: any" },
      { path: 'src/block/x.ts', text: 'const many = company(any_thing);' },
    ],
  },
  'no mutable variables at module level': {
    bad: [{ path: 'src/block/x.ts', text: 'export let count = 0;' }],
    good: [
      { path: 'src/aio/x.ts', text: 'let depth = 0;' },
      { path: 'src/block/x.ts', text: 'function f() {\n  let a = 1;\n}' },
    ],
  },
  'no mutable collections at module level': {
    bad: [
      { path: 'src/nbd/x.ts', text: 'const clients = new Set<string>();' },
      { path: 'src/nbd/x.ts', text: 'const queue: string[] = [];' },
    ],
    good: [
      { path: 'src/nbd/x.ts', text: 'const names = new Map([[1, 2]]);' },
      { path: 'src/nbd/x.ts', text: 'function f() {\n  const seen = new Set<string>();\n}' },
    ],
  },
  'no enums': {
    bad: [{ path: 'src/nbd/x.ts', text: 'export const enum A { b }' }],
    good: [{ path: 'src/nbd/x.ts', text: 'const enumerate = 1;' }],
  },
  'no barrel files': {
    bad: [{ path: 'src/nbd/index.ts', text: '' }],
    good: [{ path: 'src/nbd/l1-index.ts', text: '' }],
  },
  'every module starts with a comment that says what lives there': {
    bad: [{ path: 'src/nbd/x.ts', text: "import 'a';\n/** late */" }],
    good: [
      { path: 'src/nbd/x.ts', text: '/** The x. */' },
      { path: 'src/nbd/x.ts', text: '#!/usr/bin/env node\n// The x.' },
    ],
  },
  'relative imports name the .ts file': {
    bad: [{ path: 'src/nbd/x.ts', text: "import { a } from './y';" }],
    good: [
      { path: 'src/nbd/x.ts', text: "import { a } from './y.ts';\nimport fs from 'node:fs';" },
      { path: 'src/qmp/x.ts', text: "import { v } from '../../schema/generated/validators.js';" },
    ],
  },
  'files stay short': {
    bad: [
      { path: 'src/nbd/x.ts', text: 'x;\n'.repeat(451) },
      { path: 'test/nbd/x.ts', text: 'x;\n'.repeat(601) },
    ],
    good: [{ path: 'src/nbd/x.ts', text: 'x;\n'.repeat(450) }],
  },
};

describe('canaries', () => {
  for (const rule of TREE_RULES) {
    test(rule.name, () => {
      const samples = TREE_CANARIES[rule.name];
      expect(samples, 'a rule without a canary').toBeDefined();
      expect(rule.check(samples?.bad ?? [])).not.toEqual([]);
      expect(rule.check(samples?.good ?? [])).toEqual([]);
    });
  }
  for (const rule of RULES) {
    test(rule.name, () => {
      const samples = CANARIES[rule.name];
      expect(samples, 'a rule without a canary').toBeDefined();
      for (const bad of samples?.bad ?? []) expect(rule.check(bad), bad.text).not.toEqual([]);
      for (const good of samples?.good ?? []) expect(rule.check(good), good.text).toEqual([]);
    });
  }
});

test('comments and strings are not code', () => {
  expect(codeOnly("a('x // y'); // z\n/* b */ c")).toBe(`a(${' '.repeat(8)});     \n        c`);
});

test('imports of every form are found', () => {
  const text =
    "import a from 'a';\nimport type { B } from 'b';\nimport 'c';\nexport * from 'd';\nawait import('e');";
  expect(importsOf(text).map(({ specifier }) => specifier)).toEqual(['a', 'b', 'c', 'd', 'e']);
});
