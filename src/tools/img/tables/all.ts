/** Every sub-command's table, for help, the manual page and the completions; each command itself knows its own only. */

import type { CommandTable } from '../../common/command-table.ts';
import * as keeping from './keeping.ts';
import * as making from './making.ts';

/** By name, in alphabetical order. */
export const TABLES: readonly CommandTable[] = [...Object.values(keeping), ...Object.values(making)].sort(
  (a, b) => (a.name < b.name ? -1 : 1),
);
