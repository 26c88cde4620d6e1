/** The one list of block drivers. */

import type { BlockdevDriver } from '../../schema/generated/types.ts';
import type { BlockDriver } from '../block/driver.ts';
import { blkdebug } from './filters/blkdebug.ts';
import { qcow2 } from './formats/qcow2/driver.ts';
import { raw } from './formats/raw.ts';
import { file, hostDevice } from './protocols/file.ts';
import { nbd } from './protocols/nbd.ts';
import { nullAio, nullCo } from './protocols/null.ts';

export const drivers: Readonly<Record<BlockdevDriver, BlockDriver>> = {
  blkdebug,
  file,
  host_device: hostDevice,
  nbd,
  'null-aio': nullAio,
  'null-co': nullCo,
  qcow2,
  raw,
};
