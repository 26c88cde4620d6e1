/** The daemon says the version of its package. */

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { expect, test } from 'vitest';
import { PACKAGE_VERSION, VERSION_INFO } from '../../src/qmp/version.ts';

test('the version is that of package.json', () => {
  const text = readFileSync(path.resolve(import.meta.dirname, '../../package.json'), 'utf8');
  expect(PACKAGE_VERSION).toBe(JSON.parse(text).version);
  expect(VERSION_INFO.package).toContain(PACKAGE_VERSION);
});
