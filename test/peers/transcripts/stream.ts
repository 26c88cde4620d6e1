/** Transcripts of block-stream: arguments, the course of a job, error policies, what becomes of the images. */

import { cmd, type Step, type Transcript } from '../transcript.ts';
import { end, faultyChain, impliedChain, look, makeChain, namedChain, sameAsBefore } from './chain.ts';

const MiB = 1024 * 1024;
const completed: Step = { event: 'BLOCK_JOB_COMPLETED' };
const changed: Step = { event: 'JOB_STATUS_CHANGE' };
const query = cmd('query-block-jobs');

function stream(rest: object = {}): Step {
  return cmd('block-stream', { 'job-id': 'j', device: 'top', ...rest });
}

function verb(name: string, rest: object = {}): Step {
  return cmd(`block-job-${name}`, { [/finalize|dismiss/.test(name) ? 'id' : 'device']: 'j', ...rest });
}

/** Time for a job to come to its first sleep. */
const aWhile: Step = { run: ['sleep', '0.3'] };

/** Until the job is gone. */
const toTheEnd: readonly Step[] = [completed, changed, changed];

const options: Transcript = {
  name: 'block-stream.arguments',
  files: { 'raw.img': MiB },
  steps: [
    makeChain(),
    ...namedChain,
    cmd('blockdev-add', {
      driver: 'raw',
      'node-name': 'raw',
      file: { driver: 'file', filename: '$DIR/raw.img' },
    }),
    cmd('block-stream'),
    cmd('block-stream', { device: 'top' }),
    stream({ device: 'none' }),
    stream({ 'job-id': '1' }),
    stream({ 'job-id': '1', 'filter-node-name': '1x' }),
    stream({ unknown: 1 }),
    { note: 'base and bottom' },
    stream({ base: 'x', 'base-node': 'base' }),
    stream({ base: 'x', bottom: 'mid' }),
    stream({ bottom: 'mid', 'base-node': 'base' }),
    stream({ device: 'none', bottom: 'mid', 'base-node': 'base' }),
    stream({ base: 'x' }),
    stream({ base: 'base.qcow2' }),
    stream({ base: '$DIR/mid.qcow2' }),
    ...['none', 'base-file', 'top'].map((node) => stream({ 'base-node': node })),
    ...['none', 'base-file'].map((node) => stream({ bottom: node })),
    stream({ device: 'mid', 'base-node': 'top' }),
    { note: 'the others' },
    stream({ 'backing-file': 'x' }),
    stream({ 'backing-file': 'x', bottom: 'mid' }),
    stream({ 'on-error': 'x' }),
    stream({ speed: -1 }),
    stream({ speed: 'x' }),
    ...['base', '1x', '', 'a'.repeat(32)].map((name) => stream({ 'filter-node-name': name })),
    { note: 'nothing to do' },
    stream({ 'base-node': 'mid' }),
    stream({ bottom: 'top' }),
    stream({ device: 'raw' }),
    stream({ device: 'base' }),
    query,
    cmd('query-jobs'),
    look,
    ...end,
    look,
  ],
};

const course: Transcript = {
  name: 'block-stream.course',
  steps: [
    makeChain(),
    ...namedChain,
    { note: 'the job does its first part, and then waits for a long time' },
    stream({
      'base-node': 'base',
      speed: 1024,
      'auto-finalize': false,
      'auto-dismiss': false,
      'filter-node-name': 'filter',
    }),
    aWhile,
    verb('pause'),
    query,
    cmd('query-jobs'),
    { note: 'what cannot be done meanwhile' },
    ...['top', 'filter', 'mid'].map((device) => stream({ 'job-id': 'k', device })),
    ...['top', 'mid', 'base', 'filter'].map((node) => cmd('blockdev-del', { 'node-name': node })),
    ...['top', 'mid', 'filter'].map((node) => cmd('block_resize', { 'node-name': node, size: MiB })),
    stream({ 'job-id': 'j', device: 'base' }),
    { note: 'verbs' },
    verb('pause'),
    cmd('job-pause', { id: 'j' }),
    verb('cancel'),
    ...['complete', 'finalize', 'dismiss'].map((name) => verb(name)),
    verb('set-speed', { speed: -1 }),
    verb('set-speed', { speed: 2048 }),
    query,
    verb('set-speed', { speed: 0 }),
    verb('resume'),
    { event: 'BLOCK_JOB_PENDING' },
    query,
    ...['pause', 'resume', 'complete', 'dismiss'].map((name) => verb(name)),
    verb('set-speed', { speed: 1 }),
    verb('finalize'),
    query,
    cmd('query-jobs'),
    ...['pause', 'resume', 'complete', 'finalize', 'cancel'].map((name) => verb(name)),
    verb('dismiss'),
    verb('dismiss'),
    ...['pause', 'resume', 'complete', 'finalize', 'cancel'].map((name) => verb(name)),
    verb('set-speed', { speed: 1 }),
    query,
    cmd('blockdev-del', { 'node-name': 'mid' }),
    look,
    ...end,
    sameAsBefore('top'),
    look,
  ],
};

const cancelled: Transcript = {
  name: 'block-stream.cancelled',
  steps: [
    makeChain(),
    ...namedChain,
    stream({ speed: 1024, 'filter-node-name': 'filter' }),
    aWhile,
    verb('pause'),
    verb('cancel', { force: true }),
    query,
    cmd('blockdev-del', { 'node-name': 'filter' }),
    look,
    { note: 'at its end' },
    stream({ 'auto-finalize': false }),
    { event: 'BLOCK_JOB_PENDING' },
    verb('cancel'),
    look,
    { note: 'by the end of the daemon' },
    stream({ speed: 1024 }),
    aWhile,
    verb('pause'),
    ...end,
    look,
    sameAsBefore('top'),
  ],
};

/** One job per way to say where it ends, each with images of its own. */
function ends(name: string, chain: readonly Step[], given: object): Transcript {
  return {
    name: `block-stream.ends-${name}`,
    steps: [
      makeChain(),
      ...chain,
      stream(given),
      ...toTheEnd,
      look,
      cmd('query-named-block-nodes', { flat: true }),
      ...end,
      look,
      sameAsBefore('top'),
    ],
  };
}

const whole: Transcript = {
  ...ends('everything', [impliedChain], {}),
  name: 'block-stream.ends-everything',
};

function faults(policy: string, errno: number): Transcript {
  return {
    name: `block-stream.on-error-${policy}-${errno}`,
    steps: [
      makeChain(),
      ...faultyChain('base', [{ errno, once: true }]),
      stream({ 'on-error': policy }),
      { event: 'BLOCK_JOB_ERROR' },
      changed,
      query,
      verb('resume'),
      aWhile,
      query,
      ...end,
      look,
      sameAsBefore('top'),
    ],
  };
}

/** The images are of different lengths. */
function lengths(name: string, sizes: readonly [number, number, number], rest: object = {}): Transcript {
  return {
    name: `block-stream.lengths-${name}`,
    steps: [makeChain(sizes), ...namedChain, stream(rest), ...toTheEnd, ...end, look, sameAsBefore('top')],
  };
}

export const streamTranscripts: readonly Transcript[] = [
  options,
  course,
  cancelled,
  whole,
  ends('base', [impliedChain], { base: 'base.qcow2' }),
  ends('base-path', [impliedChain], { base: '$DIR/base.qcow2' }),
  ends('base-node', namedChain, { 'base-node': 'base' }),
  ends('bottom', namedChain, { bottom: 'mid' }),
  ends('backing-file', namedChain, { 'base-node': 'base', 'backing-file': 'base.qcow2' }),
  ends('other-file', [impliedChain], { base: 'base.qcow2', 'backing-file': './base.qcow2' }),
  ...['report', 'ignore', 'stop', 'enospc', 'auto'].flatMap((policy) => [
    faults(policy, 5),
    faults(policy, 28),
  ]),
  lengths('short-mid', [MiB, MiB / 2, MiB], { 'base-node': 'base' }),
  lengths('short-top', [MiB / 2, MiB, MiB]),
  lengths('short-below', [2 * MiB, MiB, MiB / 2]),
];
