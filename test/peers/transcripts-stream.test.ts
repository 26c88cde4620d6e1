/** QMP transcripts of both daemons: block-stream. */

import { compareTranscripts } from './transcript-comparison.ts';
import { streamTranscripts } from './transcripts/stream.ts';

compareTranscripts(streamTranscripts);
