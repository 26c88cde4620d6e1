/**
 * What scripts notice: the same shell script with our tools and with the original's in two equal folders gives the same
 * output. In the scripts `img` and `io` are the tools under test, which print their exit status in brackets; `qimg` and
 * `qio` are the original's, for what is to be prepared.
 */

import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { requirePeer } from './requires.ts';
import { TOOLS } from './tool-diff.ts';

const amendments = (options: string): string =>
  options
    .split(' ')
    .map((option) => `echo "-- ${option}"; img amend -o ${option} q`)
    .join('\n');
const openings = (options: string): string =>
  options
    .split(' ')
    .map((option) => `echo "-- ${option}"; io -c "open -o ${option} q" -c 'read 0 4k'`)
    .join('\n');
/** The entry of the image's first snapshot: O is where. */
const SNAPSHOT = `qimg create -q -f qcow2 q 1M; qimg snapshot -c s q
O=$(od -A n -t u8 --endian=big -j 64 -N 8 q | tr -d ' ')`;
const patch = (bytes: string, at: string): string =>
  `printf '${bytes}' | dd of=q bs=1 seek=${at} conv=notrunc status=none`;
const DIRTY = `qimg create -q -f qcow2 -o lazy_refcounts=on q 1M
{ qemu-io -c 'write 0 64k' -c abort q; } > /dev/null 2>&1`;
const RULES =
  'driver=raw,file.driver=blkdebug,file.config=rules,file.image.driver=file,file.image.filename=r';

const scripts: Readonly<Record<string, string>> = {
  'the name it was called by': `ln -s "$IO" myio; ./myio -c 'read 0 1' nofile; ./myio -f nope x; printf 'quit\\n' | ./myio`,
  'repairs on opening are told': `${DIRTY}; cp q q2; io -c 'write 64k 4k' q; img info q2; img snapshot -c s q2`,
  'a check clears unknown autoclear bits': `qimg create -q -f qcow2 q 1M; ${patch('\\xf0', '95')}
img check q; od -j 88 -N 8 q; img check -r leaks q; od -j 88 -N 8 q`,
  'progress of amend': `qimg create -q -f qcow2 q 64M; qio -c 'write 0 16M' q
for o in compat=0.10 compat=1.1 refcount_bits=64 refcount_bits=16 lazy_refcounts=on size=128M compat=0.10; do
img amend -p -o $o q | tr '\\r' '\\n'; done; img amend -p -o compat=1.1,refcount_bits=8 q | tr '\\r' '\\n'
img amend -p -o compat=0.10,refcount_bits=16 q | tr '\\r' '\\n'`,
  'progress of amend with small clusters': `qimg create -q -f qcow2 -o cluster_size=4k q 64M
qio -c 'write 0 8M' -c 'write -z 20M 4M' q; img amend -p -o compat=0.10 q | tr '\\r' '\\n'`,
  'options that only creation takes': `qimg create -q -f qcow2 q 1M; ${amendments(
    'cluster_size=32k preallocation=full encryption=on compression_type=zstd extended_l2=on encrypt.format=luks nope=1 refcount_bits=-1 refcount_bits=3 refcount_bits=0x10 refcount_bits=99999999999999999999',
  )}`,
  'numbers of creation': `for o in refcount_bits=-1 refcount_bits=0 refcount_bits=x refcount_bits=99999999999999999999 refcount_bits=0x10 cluster_size=-1 cluster_size=3; do img create -f qcow2 -o $o c 1M; done`,
  'zero writes to parts of clusters': `qimg create -q -f qcow2 b 1M; qio -c 'write 0 64k' b
qimg create -q -f qcow2 -b b -F qcow2 q 1M
io -c 'write -z 0 4k' -c 'write -z 128k 4k' -c 'write -z 60k 8k' -c 'write -z -u 300k 1k' -c 'write -z 1000k 24k' q
qimg map --output=json q; qimg compare q b`,
  'maps of raw data files': `qimg create -q -f qcow2 -o data_file=d,data_file_raw=on q 1M; qio -c 'write 64k 64k' q
img map q; img map --output=json q`,
  'maps of preallocated images': `for p in metadata falloc full; do qimg create -q -f qcow2 -o preallocation=$p q 4M
qio -c 'write 1M 64k' q; img map --output=json q; io -r -c map q; done`,
  'maps of images with holes in the file': `for k in 1 3 4 8 9; do rm -f q; qimg create -q -f qcow2 q 4M; qio -c 'write 0 4M' q
fallocate -p -o 327680 -l $((k * 65536)) q; img map --output=json q; done`,
  'maps of a dirty bitmap': `qimg create -q -f qcow2 q 1M; qimg bitmap --add q b; qio -c 'write 64k 64k' -c 'write 300k 4k' q
qemu-nbd -f qcow2 -k $PWD/s -t --bitmap=b --fork --pid-file=$PWD/pid q
O=driver=nbd,server.type=unix,server.path=$PWD/s
img map --output=json --image-opts $O,x-dirty-bitmap=qemu:dirty-bitmap:b; img map --output=json --image-opts $O
kill $(cat pid)`,
  'snapshots with a huge L1 table': `${SNAPSHOT}; ${patch('\\x10\\x00\\x00\\x00', '$((O + 8))')}
img info q; io -r -c 'read 0 4k' q; img snapshot -l q; img snapshot -a s q; img snapshot -d s q; img check q
img convert -l s -O raw q o`,
  'snapshots with an L1 table that is not aligned': `${SNAPSHOT}; ${patch('\\0\\0\\0\\0\\0\\x03\\x02\\0', '$O')}
img check q; img snapshot -a s q; img snapshot -d s q`,
  'snapshots with too much extra data': `${SNAPSHOT}; ${patch('\\xff\\xff\\0\\0', '$((O + 36))')}
img info q; img check q; img check -r all q; img info q`,
  'options of opening': `qimg create -q -f qcow2 q 1M; ${openings(
    'cache-clean-interval=-1 cache-clean-interval=99999999999 l2-cache-size=-1 refcount-cache-size=99999999999999999999 cache-size=1k,l2-cache-size=2k overlap-check=foo overlap-check.template=foo overlap-check=all,overlap-check.template=all l2-cache-entry-size=3',
  )}`,
  'reopening with other caches': `qimg create -q -f qcow2 q 1M
for o in l2-cache-size=1M l2-cache-entry-size=512 refcount-cache-size=0 cache-clean-interval=5 cache-clean-interval=-1 cache-size=1k,l2-cache-size=2k; do io -c "reopen -o $o" -c 'read 0 4k' q; done`,
  'formats of backing images': `touch bb; for f in vmdk vhdx dmg qcow parallels nope iscsi nbd ''; do img create -u -f qcow2 -b bb -F "$f" q 1M; done`,
  'sizes that measure tells of version 2': `qimg create -q -f qcow2 q 1M; qimg bitmap --add q b
img measure -O qcow2 q; img measure -O qcow2 -o compat=0.10 q; img measure -O qcow2 --output=json -o compat=1.1 q; img measure -O qcow2 -o compat=v2 q; img measure -O qcow2 -o compat=v3 q`,
  'strict comparisons': `for n in a c; do qimg create -q -f qcow2 -o cluster_size=4k $n 1M; done
qimg create -q -f qcow2 -b c -F qcow2 t 1M; qio -c 'write -z 88k 8k' a
img compare -s t a; img compare -s a t; img compare t a; qio -c 'write 88k 8k' t; img compare -s t a; img compare -s t c`,
  salvage: `truncate -s 4M r; qio -f raw -c 'write -P 7 0 4M' r
for sector in 0 800 801 8191; do printf '[inject-error]\\nevent = "read_aio"\\nerrno = "5"\\nsector = "%s"\\n' $sector; done > rules
img convert -m 1 --salvage -O raw --image-opts ${RULES} o; cmp -l r o | wc -l; img convert -q --salvage -O raw --image-opts ${RULES} o
img convert -m 1 -O raw --image-opts ${RULES} o`,
};

let root = '';
beforeAll(() => {
  root = mkdtempSync(path.join(tmpdir(), 'qb-sh-'));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** The output of the script with the tools of one side. */
function run(script: string, side: 'ours' | 'theirs', dir: string): Promise<string> {
  mkdirSync(dir, { recursive: true });
  const program = (tool: 'img' | 'io'): string => TOOLS[tool][side];
  const prologue = `IO=$(command -v '${program('io')}')
img() { '${program('img')}' "$@"; echo "[$?]"; }
io() { '${program('io')}' "$@"; echo "[$?]"; }
qimg() { qemu-img "$@"; }
qio() { qemu-io "$@" > /dev/null; }
`;
  return new Promise((resolve, reject) => {
    const shell = spawn('bash', ['-c', `exec 2>&1\n${prologue}${script}`], {
      cwd: dir,
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, LC_ALL: 'C', TZ: 'UTC' },
      timeout: limitMs(120_000),
    });
    let text = '';
    shell.stdout.setEncoding('utf8').on('data', (data: string) => {
      text += data;
    });
    shell.once('error', reject);
    shell.once('close', () => resolve(plain(text, dir)));
  });
}

/** Without what differs from run to run: times, speeds, the folder, the program's own name. */
function plain(text: string, dir: string): string {
  return text
    .replaceAll(dir, 'DIR')
    .replace(/\d+\.\d+ sec .*/g, 'SPEED')
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, 'DATE')
    .replaceAll('qblock-i', 'qemu-i')
    .replace(/^disk size: .*$/gm, 'disk size: SIZE');
}

describe('scripts', () => {
  for (const [index, [name, script]] of Object.entries(scripts).entries()) {
    test.concurrent(name, async (context) => {
      requirePeer(context, 'qemu-img', 'qemu-io', 'qemu-nbd');
      const of = (side: 'ours' | 'theirs'): Promise<string> =>
        run(script, side, path.join(root, `${index}${side}`));
      const [theirs, ours] = await Promise.all([of('theirs'), of('ours')]);
      expect(theirs).not.toContain('command not found');
      expect(ours).toBe(theirs);
    });
  }
});
