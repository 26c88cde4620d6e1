/**
 * What a QMP command may use. Built once by the daemon and handed to every command; commands keep no state.
 */

import type { BlockLayer } from '../block/layer.ts';
import type { ChardevTable } from '../chardev/table.ts';
import type { ExportTable } from '../exports/table.ts';
import type { JobTable } from '../jobs/job-common.ts';
import type { ObjectTree } from '../objects/tree.ts';

export interface CommandContext {
  readonly layer: BlockLayer;
  readonly objects: ObjectTree;
  readonly chardevs: ChardevTable;
  readonly exports: ExportTable;
  readonly jobs: JobTable;
  /** Where x-config-save writes when it is given no name (--save); null: nowhere. */
  readonly configFile: string | null;
  /** Ends the daemon gracefully, after the reply to the command that asked has been sent. */
  readonly requestShutdown: () => void;
}
