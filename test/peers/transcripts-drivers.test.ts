/** QMP transcripts of both daemons: the drivers for tests, quorum and replication. */

import { compareTranscripts } from './transcript-comparison.ts';
import { blkdebugTranscripts } from './transcripts/blkdebug.ts';
import { replicationTranscripts } from './transcripts/replication.ts';
import { testDriverTranscripts } from './transcripts/test-drivers.ts';

compareTranscripts([...blkdebugTranscripts, ...testDriverTranscripts, ...replicationTranscripts]);
