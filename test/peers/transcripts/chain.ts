/** A chain of three images for transcripts: top over mid over base, with some data of its own in each. */

import { cmd, type Step } from '../transcript.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

const shell = (...commands: string[]): readonly string[] => ['sh', '-c', commands.join(' && ')];

/** Makes the images; `sizes` in bytes, of top, mid and base. */
export function makeChain(sizes: readonly [number, number, number] = [MiB, MiB, MiB]): Step {
  const [top, mid, base] = sizes;
  const inMid = Math.min(128 * KiB, mid - 64 * KiB);
  const write = (image: string, pattern: number, from: string, length: string | number): string =>
    `qemu-io -c 'write -P ${pattern} ${from} ${length}' ${image}.qcow2 > io.log`;
  const commands = [
    `qemu-img create -q -f qcow2 base.qcow2 ${base}`,
    write('base', 1, '0', '128k'),
    `qemu-img create -q -f qcow2 -F qcow2 -b base.qcow2 mid.qcow2 ${mid}`,
    write('mid', 2, '64k', inMid),
    `qemu-img create -q -f qcow2 -F qcow2 -b mid.qcow2 top.qcow2 ${top}`,
    write('top', 3, '256k', '64k'),
    'cp top.qcow2 before.qcow2',
    'qemu-img convert -O raw top.qcow2 before.raw',
  ];
  return { run: shell(...commands), mustSucceed: true };
}

const image = (name: string, rest: object): Step =>
  cmd('blockdev-add', {
    driver: 'qcow2',
    'node-name': name,
    file: { driver: 'file', 'node-name': `${name}-file`, filename: `$DIR/${name}.qcow2` },
    ...rest,
  });

/** Opens the images as nodes of these names. */
export const namedChain: readonly Step[] = [
  image('base', {}),
  image('mid', { backing: 'base' }),
  image('top', { backing: 'mid' }),
];

/** Opens the top image; it opens the others by what it says of them, read-only and without names. */
export const impliedChain: Step = image('top', {});

/** The same chain with faults in one image: `rules` of blkdebug. */
export function faultyChain(faulty: string, rules: readonly object[], event = 'read_aio'): readonly Step[] {
  const open = (name: string, backing: object): Step => {
    const file = { driver: 'file', 'node-name': `${name}-file`, filename: `$DIR/${name}.qcow2` };
    const inject = rules.map((rule) => ({ event, ...rule }));
    const debug = { driver: 'blkdebug', 'node-name': 'debug', image: file, 'inject-error': inject };
    return image(name, { ...backing, ...(name === faulty && { file: debug }) });
  };
  return [open('base', {}), open('mid', { backing: 'base' }), open('top', { backing: 'mid' })];
}

/** What the images say of their backing files, and whether they are in order. */
export const look: Step = {
  run: shell(
    'for i in top mid base; do qemu-img info -U $i.qcow2 | grep \'^backing file\' | sed "s#$PWD#DIR#g"; qemu-img check -q -U $i.qcow2; done',
  ),
};

/** Compares an image with what the top image showed at first. */
export function sameAsBefore(name: string): Step {
  return { run: ['qemu-img', 'compare', '-U', '-f', 'raw', '-F', 'qcow2', 'before.raw', `${name}.qcow2`] };
}

export const end: readonly Step[] = [cmd('quit'), { exit: true }];
