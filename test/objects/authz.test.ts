/** Who is allowed, and shell patterns. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { globMatch } from '../../src/objects/glob.ts';
import { messageOf, treeWith } from './helpers.ts';

describe('authz-list', () => {
  test('the first rule that matches decides, then the policy', async () => {
    const tree = await treeWith({
      'qom-type': 'authz-list',
      id: 'a',
      policy: 'deny',
      rules: [
        { match: 'fred', policy: 'allow' },
        { match: 'dan*', policy: 'deny', format: 'glob' },
        { match: 'd*', policy: 'allow', format: 'glob' },
      ],
    });
    const allowed = (identity: string): boolean => tree.authz('a')?.isAllowed(identity) === true;
    expect(['fred', 'dora', 'd'].every(allowed)).toBe(true);
    expect(['freda', 'dan', 'daniel', 'bob', '', 'd*'.slice(2)].some(allowed)).toBe(false);
  });

  test('a pattern is plain text without format=glob', async () => {
    const tree = await treeWith({
      'qom-type': 'authz-list',
      id: 'a',
      rules: [{ match: 'f*', policy: 'allow' }],
    });
    expect(tree.authz('a')?.isAllowed('f*')).toBe(true);
    expect(tree.authz('a')?.isAllowed('fred')).toBe(false);
  });
});

test('authz-list-file follows its file, and a broken one lets nobody in', async () => {
  const dir = mkdtempSync(path.join(tmpdir(), 'qblockd-authz-'));
  try {
    const filename = path.join(dir, 'rules.json');
    const write = (list: unknown): void => writeFileSync(filename, JSON.stringify(list));
    const options = { 'qom-type': 'authz-list-file', filename } as const;
    expect(await messageOf(() => treeWith({ ...options, id: 'a' }))).toBe(
      `Unable to read ${filename}: No such file or directory`,
    );
    for (const bad of ['{', '[]', '{"policy": "x"}', '{"rules": [{"match": "a"}]}', '{"nope": 1}']) {
      writeFileSync(filename, bad);
      expect(await messageOf(() => treeWith({ ...options, id: 'a' }))).toContain(
        `Unable to read ${filename}: `,
      );
    }
    write({ policy: 'deny', rules: [{ match: 'CN=j*', policy: 'allow', format: 'glob' }] });
    const tree = await treeWith(
      { ...options, id: 'a' },
      { ...options, id: 'fixed', refresh: false },
      { 'qom-type': 'authz-listfile', id: 'schema', filename },
    );
    const allowed = (): (boolean | undefined)[] =>
      ['a', 'schema', 'fixed'].map((id) => tree.authz(id)?.isAllowed('CN=joe'));
    expect(allowed()).toEqual([true, true, true]);
    expect(tree.authz('a')?.isAllowed('CN=kim')).toBe(false);
    write({ policy: 'deny' });
    expect(allowed()).toEqual([false, false, true]);
    write({ policy: 'allow' });
    expect(allowed()).toEqual([true, true, true]);
    writeFileSync(filename, '{"policy": "allow"');
    expect(allowed()).toEqual([false, false, true]);
    rmSync(filename);
    expect(allowed()).toEqual([false, false, true]);
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test('authz-simple follows its property', async () => {
  const tree = await treeWith({ 'qom-type': 'authz-simple', id: 'a', identity: 'CN=joe' });
  const authorizer = tree.authz('a');
  const node = tree.resolve('a');
  if (node === null || node === 'ambiguous' || node.kind !== 'object') throw new Error('no object');
  expect([authorizer?.isAllowed('CN=joe'), authorizer?.isAllowed('CN=jim')]).toEqual([true, false]);
  node.object.accessors.identity?.set?.('CN=jim');
  expect([authorizer?.isAllowed('CN=joe'), authorizer?.isAllowed('CN=jim')]).toEqual([false, true]);
  expect(tree.authz('nobody')).toBeNull();
});

describe('patterns', () => {
  const cases: readonly [pattern: string, matches: readonly string[], fails: readonly string[]][] = [
    ['', [''], ['a']],
    ['a?c', ['abc', 'a/c'], ['ac', 'abbc']],
    ['*', ['', 'a', 'a/b'], []],
    ['a*b*c', ['abc', 'aXbYc', 'abcbc'], ['ab', 'acb']],
    ['[abc]', ['a', 'c'], ['d', '']],
    ['[a-c]x', ['bx'], ['dx']],
    ['[!a-c]', ['d'], ['a']],
    ['[^a-c]', ['d'], ['b']],
    ['[]a]', [']', 'a'], ['b']],
    ['[a', ['[a'], ['a']],
    ['[a-]', ['-', 'a'], ['b']],
    ['\\*', ['*'], ['a', '\\*']],
    ['a\\', ['a\\'], ['a']],
    ['[\\]]', [']'], ['\\']],
  ];
  test.each(cases)('%j', (pattern, matches, fails) => {
    for (const text of matches) expect([text, globMatch(pattern, text)]).toEqual([text, true]);
    for (const text of fails) expect([text, globMatch(pattern, text)]).toEqual([text, false]);
  });

  test('stars and question marks agree with a regular expression', () => {
    const letters = fc
      .array(fc.constantFrom('a', 'b', '*', '?'), { maxLength: 8 })
      .map((parts) => parts.join(''));
    const texts = fc.array(fc.constantFrom('a', 'b'), { maxLength: 8 }).map((parts) => parts.join(''));
    fc.assert(
      fc.property(letters, texts, (pattern, text) => {
        const model = new RegExp(`^${pattern.replaceAll('*', '.*').replaceAll('?', '.')}$`, 's');
        expect(globMatch(pattern, text)).toBe(model.test(text));
      }),
      { numRuns: 1000 },
    );
  });

  test('a pattern made to backtrack does not take long', () => {
    const started = performance.now();
    expect(globMatch(`${'a*'.repeat(200)}b`, 'a'.repeat(5000))).toBe(false);
    expect(performance.now() - started).toBeLessThan(5000);
  });
});
