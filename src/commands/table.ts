/** All commands. A command of the schema that has no handler, or one too many, does not compile. */

import type { Handlers } from '../qmp/dispatch.ts';
import { bitmapCommands } from './bitmap.ts';
import { blockCoreCommands } from './block-core.ts';
import { blockCreateCommands } from './block-create.ts';
import { blockExportCommands } from './block-export.ts';
import { blockGraphCommands } from './block-graph.ts';
import { blockJobCommands } from './block-job.ts';
import { charCommands } from './char.ts';
import { configCommands } from './config.ts';
import type { CommandContext } from './context.ts';
import { controlCommands } from './control.ts';
import { introspectCommands } from './introspect.ts';
import { jobCommands } from './job.ts';
import { mirrorCommands } from './mirror.ts';
import { qomCommands } from './qom.ts';
import { streamCommitCommands } from './stream-commit.ts';
import { testDriverCommands } from './test-drivers.ts';
import { internalSnapshotCommands } from './transaction/internal-snapshot.ts';
import { transactionCommands } from './transaction/transaction.ts';

export const commandTable: Handlers<CommandContext> = {
  ...bitmapCommands,
  ...blockCoreCommands,
  ...blockCreateCommands,
  ...blockExportCommands,
  ...blockJobCommands,
  ...blockGraphCommands,
  ...charCommands,
  ...configCommands,
  ...controlCommands,
  ...internalSnapshotCommands,
  ...introspectCommands,
  ...jobCommands,
  ...mirrorCommands,
  ...qomCommands,
  ...transactionCommands,
  ...streamCommitCommands,
  ...testDriverCommands,
};
