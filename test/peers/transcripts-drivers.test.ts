/** QMP transcripts of both daemons: the drivers for tests, and quorum. */

import { compareTranscripts } from './transcript-comparison.ts';
import { blkdebugTranscripts } from './transcripts/blkdebug.ts';
import { testDriverTranscripts } from './transcripts/test-drivers.ts';

compareTranscripts([...blkdebugTranscripts, ...testDriverTranscripts]);
