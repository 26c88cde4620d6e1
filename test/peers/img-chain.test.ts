/** qblock-img beside qemu-img: commit, rebase, bitmap, dd and bench. The files are those of img-comparison.ts. */

import { compareTools } from './img-comparison.ts';
import type { ToolCase } from './tool-diff.ts';

/** Progress in one step or in many, and how long something took, is each tool's own. */
const plain = (text: string): string =>
  text
    .replace(/( +\(\d+\.\d\d\/100%\)\r?)+/g, '(progress)')
    .replace(/completed in \d+\.\d+ s/g, 'completed in N s')
    .replace(/#block\d+/g, '#block')
    .replace(/disk size: .*/g, 'disk size: SIZE')
    .replace(/Image end offset: \d+/g, 'Image end offset: N');

const CASES: Readonly<Record<string, ToolCase>> = {
  'commit, command lines': {
    run: [
      'commit',
      'commit a b',
      'commit -z top',
      'commit nope',
      'commit base',
      'commit -b nope top',
      'commit -b top top',
      'commit -f raw top',
      'commit -t nope top',
      'commit -r nope top',
      'commit --image-opts -f qcow2 top',
      'commit raw',
      'commit lost',
    ],
  },
  'commit into the next image': { run: ['commit top'], images: ['top', 'mid', 'base'] },
  'commit with progress, quietly, at a rate': {
    run: ['commit -p mid', 'commit -q top', 'commit -q -p top', 'commit -r 100M top'],
    images: ['top', 'mid', 'base'],
  },
  'commit, keeping the data': { run: ['commit -d top', 'commit -d mid'], images: ['top', 'mid', 'base'] },
  'commit into an image further down': { run: ['commit -b base top'], images: ['top', 'mid', 'base'] },
  'commit of an image with snapshots': {
    run: [
      'create -q -f qcow2 q 1M',
      'create -q -f qcow2 -b q -F qcow2 r',
      'snapshot -c s r',
      'commit r',
      'check r',
    ],
    images: ['q'],
  },
  'commit into raw': {
    run: ['create -q -f qcow2 -b raw -F raw q 2M', 'commit -q q', 'commit q'],
    images: ['raw:raw', 'q'],
  },
  'commit of a file system of other cluster sizes': {
    run: [
      'create -q -f qcow2 -o cluster_size=512 q 2M',
      'create -q -f qcow2 -o cluster_size=2M -b q -F qcow2 r',
      'convert -n -f raw -O qcow2 full r',
      'commit r',
    ],
    images: ['q', 'r'],
  },
  'rebase of images without a backing file': {
    run: [
      ...['qcow2', 'qcow2 -o cluster_size=2M'].flatMap((format, at) => [
        `create -q -f ${format} q${at} 4M`,
        `rebase -f qcow2 -b full -F raw q${at}`,
        `compare -f qcow2 -F raw q${at} zeroes`,
      ]),
      'convert -f raw -O qcow2 full qf',
      'rebase -u raw',
      'rebase -b top -F qcow2 qf',
      'compare -F raw qf full',
    ],
    images: ['q0', 'q1', 'qf'],
  },
  'commit of version 2': {
    run: [
      'create -q -f qcow2 -o compat=0.10 -b v2 -F qcow2 q 2M',
      'convert -n -f raw -O qcow2 full q',
      'commit q',
    ],
    images: ['v2', 'q'],
  },
  'what a longer image would show of a longer backing file': {
    run: [
      'create -q -f qed -b full -F raw q 64k',
      'resize q 2M',
      'create -q -f qcow2 -b q -F qed r 2M',
      'convert -f qcow2 -O raw r before',
      'compare -f raw -F qcow2 before r',
    ],
    images: ['q'],
  },
  'rebase, command lines': {
    run: [
      'rebase',
      'rebase top',
      'rebase -b x',
      'rebase -b base -z top',
      'rebase -u -b base top',
      'rebase -b nope -F raw top',
      'rebase -b base -F nope top',
      'rebase -u -b base -F nope top',
      'rebase -t nope -b base top',
      'rebase -T nope -b base top',
      'rebase -f raw -b base -F qcow2 top',
      'rebase -f raw -u -b base -F qcow2 raw',
      'rebase -b base -F qcow2 nope',
      'rebase -b base -F qcow2 lost',
      'rebase --image-opts -f qcow2 -b base top',
      ['rebase', '-f', 'raw', '-b', '', 'raw'],
    ],
    images: ['top'],
  },
  'rebase without looking': {
    run: [
      'rebase -u -b nope -F raw top',
      'info top',
      ['rebase', '-u', '-b', '', 'top'],
      'rebase -u -q -p -b base -F qcow2 top',
    ],
    images: ['top'],
  },
  'bitmap, command lines': {
    run: [
      'bitmap',
      'bitmap --add marked',
      'bitmap marked b0',
      'bitmap --add a b c',
      'bitmap --nope marked b0',
      'bitmap -q --add marked b9',
      'bitmap --add -g nope marked b9',
      'bitmap --add -g 1000 marked b9',
      'bitmap --add -g 100 marked b9',
      'bitmap --add -g 4G marked b9',
      'bitmap -g 1k --remove marked b0',
      'bitmap --merge b0 -F qcow2 marked b1',
      'bitmap --add -b base marked b9',
      'bitmap --merge b0 -b nope -F qcow2 marked b1',
      'bitmap --add nope b0',
      'bitmap --add marked b0',
      'bitmap --remove marked nope',
      'bitmap --merge nope marked b0',
      ['bitmap', '--add', 'marked', ''],
      'bitmap --add -f raw raw b',
      'bitmap --add v2 b',
      'info marked',
    ],
  },
  'bitmap, all actions': {
    run: [
      'bitmap --add marked n0',
      'bitmap --add --granularity 1k marked n1',
      'bitmap --add --disable marked n2',
      'bitmap --add --remove marked n3',
      'bitmap --add --merge b0 marked n4',
      'bitmap --merge b1 marked b0',
      'bitmap --clear marked b1',
      'bitmap --enable --disable --enable marked b1',
      'bitmap --remove marked n0',
      'info marked',
      'create -q -f qcow2 q 1M',
      'bitmap --add q from-marked',
      'bitmap --merge b0 -b marked -F qcow2 q from-marked',
      'bitmap --add --merge b0 --source-file marked q again',
      'create -q -f qcow2 r 2M',
      'bitmap --add r c',
      'bitmap --merge c -b r -F qcow2 marked b0',
      'bitmap --add --image-opts driver=qcow2,file.filename=marked opts',
      'check marked',
      'check q',
    ],
    // What every change of the bitmaps gave up in `marked` is used again later than in the original.
    images: ['q'],
  },
  'dd, command lines': {
    run: [
      'dd',
      'dd if=raw',
      'dd of=q',
      'dd if=raw of=q bs=0',
      'dd if=raw of=q bs=nope',
      'dd if=raw of=q bs=3G',
      'dd if=raw of=q count=nope',
      'dd if=raw of=q skip=-1',
      'dd if=raw of=q conv=notrunc',
      'dd if=raw of=q foo',
      'dd if=nope of=q',
      'dd -f nope if=raw of=q',
      'dd -O nope if=raw of=q',
      'dd if=raw of=/nope/q',
      'dd -n if=raw of=q',
      'dd --image-opts -f qcow2 if=base of=q',
      'dd if=base skip=9999 of=q',
    ],
    images: ['q:raw'],
  },
  'dd of parts': {
    run: [
      'dd if=base of=q',
      'dd if=base of=r bs=1k count=3',
      'dd if=base of=s bs=64k skip=1 count=2 -O qcow2',
      'dd -f raw if=base of=t bs=1M',
      'dd bs=700 count=3 if=raw -f raw of=u',
      'dd --image-opts if=driver=qcow2,file.filename=top of=v bs=1M skip=1',
      'dd -U if=base of=w count=0',
      'dd bs=512 skip=2047 -f raw if=raw of=x',
    ],
    images: ['q:raw', 'r:raw', 's', 't:raw', 'u:raw', 'v:raw', 'w:raw', 'x:raw'],
  },
  bench: {
    run: [
      'bench',
      'bench a b',
      'bench -c nope base',
      'bench -d nope base',
      'bench -s 2G base',
      'bench -S nope base',
      'bench -o nope base',
      'bench --pattern=300 base',
      'bench --pattern=nope base',
      'bench --flush-interval=3 base',
      'bench -w -d 4 --flush-interval=3 base',
      'bench -i nope base',
      'bench -t nope base',
      'bench -n base',
      'bench nope',
      'bench -c 100 base',
      'bench -c 0 base',
      'bench -c 10 -w --pattern=5 -d 2 -s 8k -S 16k -o 64k base',
      'bench -c 6 -w -d 2 --flush-interval 2 base',
      'bench -c 8 -w -d 2 --flush-interval 4 --no-drain base',
      'bench -U -q -c 1 base',
    ],
    images: ['base'],
  },
};

compareTools(
  Object.fromEntries(
    Object.entries(CASES).map(([name, toolCase]) => [name, { ...toolCase, normalise: plain }]),
  ),
);
