/** QMP transcripts of both daemons: block-commit. */

import { compareTranscripts } from './transcript-comparison.ts';
import { commitTranscripts } from './transcripts/commit.ts';

compareTranscripts(commitTranscripts);
