/**
 * The same QMP scripts against qemu-storage-daemon and against qblockd: equal replies, after normalising. The scripts
 * are in transcripts/, and run from transcripts-TOPIC.test.ts: several files, that they may run side by side.
 *
 * With RECORD_TRANSCRIPTS=FOLDER both records are also written there, to be read or diffed.
 */

import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { hasLoopDevices, type PeerName, requirePeer } from './requires.ts';
import { runTranscript, type Transcript } from './transcript.ts';

function record(name: string, side: 'original' | 'ours', text: string): string {
  const folder = process.env.RECORD_TRANSCRIPTS;
  if (folder !== undefined) {
    mkdirSync(path.join(folder, side), { recursive: true });
    writeFileSync(path.join(folder, side, `${name}.txt`), text);
  }
  return text;
}

/** Makes a test of each transcript. */
export function compareTranscripts(transcripts: readonly Transcript[]): void {
  describe('transcripts', () => {
    for (const transcript of transcripts) {
      test(transcript.name, async (context) => {
        const needs = (transcript.needs ?? []) as PeerName[];
        requirePeer(context, 'qemu-storage-daemon', 'qemu-io', ...needs);
        if (transcript.loopDevice === true && !hasLoopDevices()) context.skip('no loop device to be had');
        const original = await runTranscript(transcript, 'qemu-storage-daemon');
        const theirs = record(transcript.name, 'original', original);
        const ours = record(transcript.name, 'ours', await runTranscript(transcript, 'qblockd'));
        expect(ours).toBe(theirs);
      });
    }
  });
}
