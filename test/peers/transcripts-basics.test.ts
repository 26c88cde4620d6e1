/** QMP transcripts of both daemons: the monitor, nodes of file and raw, permissions, queries, exports, the nbd driver, objects, character devices. */

import { compareTranscripts } from './transcript-comparison.ts';
import { blockdevAddTranscripts } from './transcripts/blockdev-add.ts';
import { rawTranscripts } from './transcripts/blockdev-add-raw.ts';
import { chardevTranscripts } from './transcripts/chardevs.ts';
import { controlTranscripts } from './transcripts/control.ts';
import { exportTranscripts } from './transcripts/exports.ts';
import { hostDeviceTranscript, loopDeviceTranscript } from './transcripts/host-device.ts';
import { nbdTranscripts } from './transcripts/nbd.ts';
import { objectTranscripts } from './transcripts/objects.ts';
import { permissionTranscripts } from './transcripts/permissions.ts';
import { queryTranscripts } from './transcripts/queries.ts';

compareTranscripts([
  ...controlTranscripts,
  ...blockdevAddTranscripts,
  ...rawTranscripts,
  hostDeviceTranscript,
  loopDeviceTranscript,
  ...permissionTranscripts,
  ...queryTranscripts,
  ...exportTranscripts,
  ...nbdTranscripts,
  ...objectTranscripts,
  ...chardevTranscripts,
]);
