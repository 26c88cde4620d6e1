/** QMP transcripts of both daemons: exports other than NBD. */

import { compareTranscripts } from './transcript-comparison.ts';
import { fuseTranscripts } from './transcripts/fuse.ts';
import { vhostUserBlkTranscripts } from './transcripts/vhost-user-blk.ts';

compareTranscripts([...fuseTranscripts, ...vhostUserBlkTranscripts]);
