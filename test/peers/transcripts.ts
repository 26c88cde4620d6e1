/** The list of all transcripts. */

import type { Transcript } from './transcript.ts';
import { backupTranscripts } from './transcripts/backup.ts';
import { moreBackupTranscripts } from './transcripts/backup-more.ts';
import { bitmapTranscripts } from './transcripts/bitmaps.ts';
import { blkdebugTranscripts } from './transcripts/blkdebug.ts';
import { blockdevAddTranscripts } from './transcripts/blockdev-add.ts';
import { rawTranscripts } from './transcripts/blockdev-add-raw.ts';
import { chardevTranscripts } from './transcripts/chardevs.ts';
import { commitTranscripts } from './transcripts/commit.ts';
import { controlTranscripts } from './transcripts/control.ts';
import { copyBeforeWriteTranscripts } from './transcripts/copy-before-write.ts';
import { exportTranscripts } from './transcripts/exports.ts';
import { filterTranscripts } from './transcripts/filters.ts';
import { graphCommandTranscripts } from './transcripts/graph-commands.ts';
import { hostDeviceTranscript, loopDeviceTranscript } from './transcripts/host-device.ts';
import { jobTranscripts } from './transcripts/jobs.ts';
import { mirrorTranscripts } from './transcripts/mirror.ts';
import { nbdTranscripts } from './transcripts/nbd.ts';
import { objectTranscripts } from './transcripts/objects.ts';
import { permissionTranscripts } from './transcripts/permissions.ts';
import { queryTranscripts } from './transcripts/queries.ts';
import { reopenTranscripts } from './transcripts/reopen.ts';
import { snapshotTranscripts } from './transcripts/snapshots.ts';
import { streamTranscripts } from './transcripts/stream.ts';
import { testDriverTranscripts } from './transcripts/test-drivers.ts';
import { transactionTranscripts } from './transcripts/transactions.ts';

export const allTranscripts: readonly Transcript[] = [
  ...controlTranscripts,
  ...blockdevAddTranscripts,
  ...rawTranscripts,
  ...blkdebugTranscripts,
  ...testDriverTranscripts,
  ...filterTranscripts,
  hostDeviceTranscript,
  loopDeviceTranscript,
  ...permissionTranscripts,
  ...queryTranscripts,
  ...exportTranscripts,
  ...reopenTranscripts,
  ...graphCommandTranscripts,
  ...bitmapTranscripts,
  ...jobTranscripts,
  ...mirrorTranscripts,
  ...nbdTranscripts,
  ...copyBeforeWriteTranscripts,
  ...backupTranscripts,
  ...moreBackupTranscripts,
  ...snapshotTranscripts,
  ...streamTranscripts,
  ...commitTranscripts,
  ...transactionTranscripts,
  ...objectTranscripts,
  ...chardevTranscripts,
];
