/** Secrets: where the bytes come from, encodings, encryption. */

import { createCipheriv, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { messageOf, treeWith } from './helpers.ts';

let dir = '';
beforeAll(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'qb-secret-'));
});
afterAll(() => rmSync(dir, { recursive: true }));

const key = randomBytes(32);
const iv = randomBytes(16);
const master = {
  'qom-type': 'secret',
  id: 'master',
  data: key.toString('base64'),
  format: 'base64',
} as const;

function encrypt(plain: Uint8Array): Buffer {
  const cipher = createCipheriv('aes-256-cbc', key, iv);
  return Buffer.concat([cipher.update(plain), cipher.final()]);
}

describe('sources', () => {
  test('data and files, raw and base64', async () => {
    writeFileSync(path.join(dir, 'raw'), Buffer.from([0, 255, 10]));
    writeFileSync(path.join(dir, 'encoded'), 'AP8K\n');
    const tree = await treeWith(
      { 'qom-type': 'secret', id: 'a', data: 'héllo' },
      { 'qom-type': 'secret', id: 'b', data: 'AP8K', format: 'base64' },
      { 'qom-type': 'secret', id: 'c', file: path.join(dir, 'raw') },
      { 'qom-type': 'secret', id: 'd', file: path.join(dir, 'encoded'), format: 'base64' },
    );
    expect(tree.secret('a').toString()).toBe('héllo');
    for (const id of ['b', 'c', 'd']) expect(tree.secret(id)).toEqual(Buffer.from([0, 255, 10]));
    expect(tree.secretText('a')).toBe('héllo');
    expect(() => tree.secretText('b')).toThrow('Data from secret b is not valid UTF-8');
  });

  test('a file that never ends is refused', async () => {
    const options = { 'qom-type': 'secret', id: 'z', file: '/dev/zero' } as const;
    expect(await messageOf(() => treeWith(options))).toBe('Unable to read /dev/zero: the file is too large');
  });
});

describe('encryption', () => {
  test('any content comes back, in both encodings', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 70 }), async (plain) => {
        const cipherText = encrypt(plain);
        const common = { 'qom-type': 'secret', keyid: 'master', iv: iv.toString('base64') } as const;
        writeFileSync(path.join(dir, 'cipher'), cipherText);
        const tree = await treeWith(
          master,
          { ...common, id: 'b', data: cipherText.toString('base64'), format: 'base64' },
          { ...common, id: 'r', file: path.join(dir, 'cipher') },
        );
        expect(tree.secret('b')).toEqual(Buffer.from(plain));
        expect(tree.secret('r')).toEqual(Buffer.from(plain));
      }),
      { numRuns: 30 },
    );
  });

  test('what is no cipher text is an error, never a crash', async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 70 }), async (bytes) => {
        const options = {
          'qom-type': 'secret',
          id: 'x',
          keyid: 'master',
          iv: iv.toString('base64'),
        } as const;
        const data = Buffer.from(bytes).toString('base64');
        const outcome = await treeWith(master, { ...options, data, format: 'base64' }).catch(
          (error: Error) => error.name,
        );
        expect(typeof outcome === 'object' || outcome === 'BlockError').toBe(true);
      }),
      { numRuns: 50 },
    );
  });
});

test('what qom-set changes is shown and has no effect', async () => {
  const tree = await treeWith({ 'qom-type': 'secret', id: 's', data: 'old' });
  const node = tree.resolve('/objects/s');
  if (node === null || node === 'ambiguous' || node.kind !== 'object') throw new Error('no object');
  node.object.accessors.data?.set?.('new');
  expect(node.object.accessors.data?.get()).toBe('new');
  expect(tree.secret('s').toString()).toBe('old');
});
