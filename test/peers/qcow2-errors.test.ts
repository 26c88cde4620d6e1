/**
 * What both daemons say of damaged images and of options that do not fit: the error texts must be equal, in
 * read-write and read-only opens.
 */

import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, test } from 'vitest';
import { type Command, compareCommands, type Reply } from './compare.ts';
import { corruptionTranscripts } from './qcow2-corruptions.ts';
import {
  type Damage,
  damaged,
  headerDamages,
  makeBases,
  optionDamages,
  pairedDamages,
} from './qcow2-damages.ts';
import { requirePeer } from './requires.ts';
import { runTranscript } from './transcript.ts';

interface Answer {
  readonly theirs: string;
  readonly ours: string;
}

/** The error's text, or 'done'. */
function textOf(reply: Reply | undefined): string {
  const { error } = (reply?.reply ?? {}) as { readonly error?: { readonly desc: string } };
  return error?.desc ?? 'done';
}

/** Opens every image read-write, then read-only, on both daemons; the answers by case. */
async function answers(cases: readonly Damage[]): Promise<Answer[][]> {
  const bases = makeBases(new Set(cases.map(({ base }) => base)));
  const commands: Command[] = [
    ['object-add', { 'qom-type': 'secret', id: 's', data: 'x' }],
    ['object-add', { 'qom-type': 'secret', id: 'wrong', data: 'y' }],
  ];
  const first = commands.length;
  for (const [index, { options }] of cases.entries()) {
    for (const readOnly of [false, true]) {
      commands.push([
        'blockdev-add',
        {
          driver: 'qcow2',
          'node-name': 'node',
          file: { driver: 'file', filename: `$DIR/${index}.qcow2` },
          'read-only': readOnly,
          ...options,
        },
      ]);
      commands.push(['blockdev-del', { 'node-name': 'node' }]);
    }
  }
  const { theirs, ours } = await compareCommands(commands, (dir) => {
    for (const [index, { base, changes }] of cases.entries()) {
      writeFileSync(path.join(dir, `${index}.qcow2`), damaged(bases.get(base)!, changes));
    }
  });
  return cases.map((_, index) =>
    [0, 1, 2, 3].map((step) => {
      const at = first + index * 4 + step;
      return { theirs: textOf(theirs[at]), ours: textOf(ours[at]) };
    }),
  );
}

function compareAll(title: string, cases: readonly Damage[]): void {
  test(title, async (context) => {
    requirePeer(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io');
    const all = await answers(cases);
    const side = (which: keyof Answer): object =>
      Object.fromEntries(cases.map(({ name }, index) => [name, all[index]!.map((answer) => answer[which])]));
    expect(side('ours')).toEqual(side('theirs'));
  });
}

compareAll('damaged headers', headerDamages);
compareAll('options that do not fit', optionDamages);
compareAll('two damages: which is reported', pairedDamages);

describe('damage met while running', () => {
  for (const transcript of corruptionTranscripts) {
    test(transcript.name, async (context) => {
      requirePeer(context, 'qemu-storage-daemon', 'qemu-img', 'qemu-io');
      const [theirs, ours] = await Promise.all(
        (['qemu-storage-daemon', 'qblockd'] as const).map((kind) => runTranscript(transcript, kind)),
      );
      expect(ours).toBe(theirs);
    });
  }
});
