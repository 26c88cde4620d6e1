/** Who is allowed, and shell patterns. */

import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { globMatch } from '../../src/objects/glob.ts';
import { treeWith } from './helpers.ts';

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
