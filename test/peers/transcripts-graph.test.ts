/** QMP transcripts of both daemons: filters, reopening, changes of the graph, snapshots, bitmaps, transactions. */

import { compareTranscripts } from './transcript-comparison.ts';
import { bitmapTranscripts } from './transcripts/bitmaps.ts';
import { filterTranscripts } from './transcripts/filters.ts';
import { graphCommandTranscripts } from './transcripts/graph-commands.ts';
import { reopenTranscripts } from './transcripts/reopen.ts';
import { snapshotTranscripts } from './transcripts/snapshots.ts';
import { transactionTranscripts } from './transcripts/transactions.ts';

compareTranscripts([
  ...filterTranscripts,
  ...reopenTranscripts,
  ...graphCommandTranscripts,
  ...bitmapTranscripts,
  ...snapshotTranscripts,
  ...transactionTranscripts,
]);
