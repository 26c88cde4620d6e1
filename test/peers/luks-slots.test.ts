/** Key slots of luks images by `amend`, beside the original and cryptsetup; and other readers of our images. */

import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { requirePeer } from './requires.ts';
import { runTool, TOOLS, type ToolOutcome } from './tool-diff.ts';

const folder = mkdtempSync(path.join(tmpdir(), 'qb-slots-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const PASSPHRASES = ['first', 'second', 'third'];
const SECRETS = PASSPHRASES.flatMap((each, i) => ['--object', `secret,id=s${i},data=${each}`]);
const MIB = 1024 * 1024;

/** The original measures its own speed, and now and then gives up: it is asked again. */
async function run(tool: string, args: readonly string[], dir: string): Promise<ToolOutcome> {
  for (let left = 50; ; left--) {
    const outcome = await runTool(tool, args, dir);
    if (left === 0 || !outcome.stderr.includes('Unable to get accurate CPU usage')) return outcome;
  }
}

function image(key: string): string {
  return `driver=luks,key-secret=${key},file.filename=disk.luks`;
}

/** -o of amend, with the secret that opens the image. */
const AMENDMENTS: readonly (readonly [string, string, ...string[]])[] = [
  ['s0', 'state=active,new-secret=s1,iter-time=10'],
  ['s0', 'state=active,new-secret=s2,keyslot=5,iter-time=10'],
  ['s0', 'state=active,new-secret=s2,keyslot=5,iter-time=10'],
  ['s0', 'state=active,new-secret=s2,keyslot=9,iter-time=10'],
  ['s0', 'state=active,iter-time=10'],
  ['s0', 'state=inactive'],
  ['s0', 'state=bad'],
  ['s0', 'new-secret=s1'],
  ['s0', 'state=inactive,keyslot=3'],
  ['s0', 'state=inactive,keyslot=8'],
  ['s0', 'state=inactive,old-secret=s1,keyslot=1'],
  ['s0', 'state=inactive,old-secret=s0,keyslot=5'],
  ['s0', 'state=active,old-secret=s0,new-secret=s1,iter-time=10'],
  ['s1', 'state=inactive,old-secret=s0'],
  ['s1', 'state=inactive,old-secret=s0'],
  ['s0', 'state=active,new-secret=s0,iter-time=10'],
  ['s2', 'state=inactive,old-secret=s1'],
  ['s2', 'state=inactive,keyslot=5'],
  ['s2', 'state=inactive,old-secret=s2'],
  ['s2', 'state=active,new-secret=s0,keyslot=5,iter-time=10'],
  ['s2', 'state=active,new-secret=s0,keyslot=7,iter-time=0'],
  ['s2', 'state=active,new-secret=s1,keyslot=5,iter-time=10', '--force'],
  ['s1', 'state=inactive,keyslot=5', '--force'],
];

/** Which slots are in use, as cryptsetup sees it. */
function slotsOf(file: string): string {
  const dump = execFileSync('cryptsetup', ['luksDump', file], { encoding: 'utf8' });
  return [...dump.matchAll(/^Key Slot (\d): ENABLED/gm)].map(([, slot]) => slot).join(' ');
}

/** Which passphrases open the volume. */
function openers(file: string): readonly string[] {
  return PASSPHRASES.filter((passphrase) => {
    const argv = ['open', '--test-passphrase', '--key-file', '-', file];
    return spawnSync('cryptsetup', argv, { input: passphrase }).status === 0;
  });
}

test(
  'key slots are added and erased, and refused, as by the original',
  async (context) => {
    requirePeer(context, 'qemu-img', 'cryptsetup');
    const [ours, theirs] = ['ours', 'theirs'].map((each) => path.join(folder, each)) as [string, string];
    for (const dir of [ours, theirs]) mkdirSync(dir);
    const creation = ['-f', 'luks', '-o', 'key-secret=s0,iter-time=10', 'disk.luks', '1M'];
    expect(await run(TOOLS.img.theirs, ['create', '-q', ...SECRETS, ...creation], theirs)).toMatchObject({
      status: 0,
    });
    copyFileSync(path.join(theirs, 'disk.luks'), path.join(ours, 'disk.luks'));
    for (const [key, options, ...force] of AMENDMENTS) {
      const args = ['amend', ...SECRETS, ...force, '--image-opts', image(key), '-o', options];
      const results = await Promise.all(
        ([[TOOLS.img.ours, ours] as const, [TOOLS.img.theirs, theirs] as const] as const).map(
          async ([tool, dir]) => {
            const { status, stdout, stderr } = await run(tool, args, dir);
            const text = stderr.replaceAll('qblock-img', 'qemu-img');
            return {
              key,
              options,
              status,
              stdout,
              stderr: text,
              slots: slotsOf(path.join(dir, 'disk.luks')),
            };
          },
        ),
      );
      expect(results[0]).toEqual(results[1]);
    }
    const files = [ours, theirs].map((dir) => path.join(dir, 'disk.luks'));
    expect(openers(files[0]!).length).toBeGreaterThan(0);
    expect(openers(files[0]!)).toEqual(openers(files[1]!));
  },
  limitMs(240_000),
);

test("nbdkit's luks filter reads what is made here", async (context) => {
  requirePeer(context, 'nbdkit', 'nbdcopy');
  const content = Buffer.alloc(2 * MIB);
  for (let at = 0; at < content.length; at++) content[at] = (at * 13 + (at >> 10)) % 253;
  writeFileSync(path.join(folder, 'disk.raw'), content);
  for (const options of [
    'cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64',
    'cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=plain',
    'cipher-alg=aes-128,cipher-mode=xts,hash-alg=sha512',
  ]) {
    const all = `key-secret=s0,iter-time=10,${options}`;
    const args = ['convert', ...SECRETS, '-f', 'raw', '-O', 'luks', '-o', all, 'disk.raw', 'own.luks'];
    expect(await run(TOOLS.img.ours, args, folder)).toMatchObject({ status: 0, stderr: '' });
    execFileSync(
      'nbdkit',
      ['-r', '--filter=luks', 'file', 'own.luks', 'passphrase=first', '--run', 'nbdcopy "$uri" read.raw'],
      { cwd: folder },
    );
    expect(readFileSync(path.join(folder, 'read.raw')).equals(content)).toBe(true);
  }
});
