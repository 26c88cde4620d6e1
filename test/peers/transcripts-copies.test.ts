/** QMP transcripts of both daemons: jobs in general, mirror, backup, copy-before-write. */

import { compareTranscripts } from './transcript-comparison.ts';
import { backupTranscripts } from './transcripts/backup.ts';
import { moreBackupTranscripts } from './transcripts/backup-more.ts';
import { copyBeforeWriteTranscripts } from './transcripts/copy-before-write.ts';
import { jobTranscripts } from './transcripts/jobs.ts';
import { mirrorTranscripts } from './transcripts/mirror.ts';

compareTranscripts([
  ...jobTranscripts,
  ...mirrorTranscripts,
  ...copyBeforeWriteTranscripts,
  ...backupTranscripts,
  ...moreBackupTranscripts,
]);
