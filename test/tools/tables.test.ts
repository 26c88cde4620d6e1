/** The tables of the tools' options: what help, manual pages and completions are made of. */

import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { optionName } from '../../src/tools/common/command-table.ts';
import { TABLES } from '../../src/tools/img/tables/all.ts';
import { PROGRAM as IO } from '../../src/tools/io/table.ts';
import { PROGRAM as NBD } from '../../src/tools/nbd/table.ts';
import { PROGRAM as SHELL } from '../../src/tools/shell/table.ts';
import { repositoryRoot } from '../peers/daemons.ts';

const run = promisify(execFile);
const bin = (name: string): string => path.join(repositoryRoot, 'daemon/bin', name);

describe.each([...TABLES, IO, NBD, SHELL].map((table) => [table.name, table] as const))(
  '%s',
  (name, table) => {
    test('every option says what it does, and no name is taken twice', () => {
      const options = Object.entries(table.options);
      const names = options.flatMap(([, { long, short }]) =>
        [long, short].filter((one) => one !== undefined),
      );
      expect(new Set(names).size).toBe(names.length);
      for (const [key, { argument, value, help, long, short }] of options) {
        expect(help, key).toBeTruthy();
        expect(value !== undefined, key).toBe(argument);
        expect(long ?? short, key).toBeDefined();
      }
    });

    test('--help shows them all', async () => {
      const isImg = !name.startsWith('qblock-');
      const { stdout } = isImg
        ? await run(bin('qblock-img'), [name, '--help'])
        : await run(bin(name), ['--help']);
      expect(stdout).toContain(`Usage: ${isImg ? `qblock-img ${name}` : name} `);
      for (const option of Object.values(table.options)) expect(stdout).toContain(`  ${optionName(option)}`);
      expect(stdout).toMatch(/Exit status:\n +0 /);
    });
  },
);
