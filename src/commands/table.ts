/** All commands. A command of the schema that has no handler, or one too many, does not compile. */

import type { Handlers } from '../qmp/dispatch.ts';
import { blockCoreCommands } from './block-core.ts';
import { blockExportCommands } from './block-export.ts';
import { charCommands } from './char.ts';
import type { CommandContext } from './context.ts';
import { controlCommands } from './control.ts';
import { introspectCommands } from './introspect.ts';
import { qomCommands } from './qom.ts';

export const commandTable: Handlers<CommandContext> = {
  ...blockCoreCommands,
  ...blockExportCommands,
  ...charCommands,
  ...controlCommands,
  ...introspectCommands,
  ...qomCommands,
};
