/** The one list of kinds of exports. */

import type { ExportEnvironment, ExportType, ExportTypeName } from './contract.ts';
import { fuseExportType } from './fuse/fuse.ts';
import { nbdExportType } from './nbd/nbd-export.ts';
import type { NbdService } from './nbd/service.ts';
import { vhostUserBlkExportType } from './vhost-user-blk/vhost-user-blk.ts';

export type ExportTypes = { readonly [T in ExportTypeName]: ExportType<T> };

/** Every kind, with the state its exports share. */
export function createExportTypes(environment: ExportEnvironment, nbd: NbdService): ExportTypes {
  return {
    nbd: nbdExportType(environment, nbd),
    fuse: fuseExportType(),
    'vhost-user-blk': vhostUserBlkExportType(environment),
  };
}
