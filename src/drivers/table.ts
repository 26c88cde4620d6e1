/** The one list of block drivers. */

import type { BlockdevDriver } from '../../schema/generated/types.ts';
import type { BlockDriver } from '../block/contract/driver.ts';
import { blkdebug } from './filters/blkdebug/blkdebug.ts';
import { blklogwrites } from './filters/blklogwrites.ts';
import { blkreplay } from './filters/blkreplay.ts';
import { blkverify } from './filters/blkverify.ts';
import { compress } from './filters/compress.ts';
import { copyBeforeWrite } from './filters/copy-before-write.ts';
import { copyOnRead } from './filters/copy-on-read.ts';
import { preallocate } from './filters/preallocate.ts';
import { quorum } from './filters/quorum/quorum.ts';
import { snapshotAccess } from './filters/snapshot-access.ts';
import { throttle } from './filters/throttle.ts';
import { qcow2 } from './formats/qcow2/driver.ts';
import { raw } from './formats/raw.ts';
import { file, hostDevice } from './protocols/file/file.ts';
import { nbd } from './protocols/nbd/nbd.ts';
import { nullAio, nullCo } from './protocols/null.ts';

export const drivers: Readonly<Record<BlockdevDriver, BlockDriver>> = {
  blkdebug,
  blklogwrites,
  blkreplay,
  blkverify,
  compress,
  'copy-before-write': copyBeforeWrite,
  'copy-on-read': copyOnRead,
  file,
  host_device: hostDevice,
  nbd,
  'null-aio': nullAio,
  'null-co': nullCo,
  preallocate,
  qcow2,
  quorum,
  raw,
  'snapshot-access': snapshotAccess,
  throttle,
};
