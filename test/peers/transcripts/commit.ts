/** Transcripts of block-commit, of the active layer and of others: arguments, course, error policies, the images after. */

import { cmd, type Step, type Transcript } from '../transcript.ts';
import { end, faultyChain, impliedChain, look, makeChain, namedChain, sameAsBefore } from './chain.ts';

const MiB = 1024 * 1024;
const KiB = 1024;
const completed: Step = { event: 'BLOCK_JOB_COMPLETED' };
const changed: Step = { event: 'JOB_STATUS_CHANGE' };
const ready: Step = { event: 'BLOCK_JOB_READY' };
const query = cmd('query-block-jobs');
/** Time for a job to come to its first sleep. */
const aWhile: Step = { run: ['sleep', '0.3'] };

function commit(rest: object = {}): Step {
  return cmd('block-commit', { 'job-id': 'j', device: 'top', ...rest });
}

function verb(name: string, rest: object = {}): Step {
  return cmd(`block-job-${name}`, { [/finalize|dismiss/.test(name) ? 'id' : 'device']: 'j', ...rest });
}

const toTheEnd: readonly Step[] = [completed, changed, changed];

const options: Transcript = {
  name: 'block-commit.arguments',
  steps: [
    makeChain(),
    ...namedChain,
    cmd('block-commit'),
    cmd('block-commit', { device: 'top' }),
    commit({ device: 'none' }),
    commit({ 'job-id': '1' }),
    commit({ 'job-id': '1', 'filter-node-name': '1x' }),
    commit({ 'job-id': '1', 'filter-node-name': '1x', 'top-node': 'mid' }),
    commit({ unknown: 1 }),
    { note: 'top and base' },
    commit({ base: 'x', 'base-node': 'base' }),
    commit({ top: 'x', 'top-node': 'mid' }),
    commit({ base: 'x', 'base-node': 'base', device: 'none' }),
    commit({ base: 'x', 'base-node': 'base', top: 'x', 'top-node': 'mid' }),
    commit({ base: 'x' }),
    commit({ top: 'x' }),
    commit({ base: 'base.qcow2' }),
    commit({ top: 'mid.qcow2' }),
    ...['none', 'base-file', 'top'].map((node) => commit({ 'base-node': node })),
    ...['none', 'base-file', 'base'].map((node) => commit({ 'top-node': node })),
    commit({ 'base-node': 'mid', 'top-node': 'base' }),
    commit({ 'base-node': 'mid', 'top-node': 'mid' }),
    ...['mid', 'base', 'top-file'].map((device) => commit({ device })),
    { note: 'the others' },
    commit({ 'backing-file': 'x' }),
    ...[{}, { 'top-node': 'mid' }].flatMap((which) => [
      commit({ ...which, 'on-error': 'x' }),
      commit({ ...which, speed: -1 }),
      ...['base', '1x', ''].map((name) => commit({ ...which, 'filter-node-name': name })),
    ]),
    query,
    cmd('query-jobs'),
    look,
    ...end,
    look,
  ],
};

const intermediate: Transcript = {
  name: 'block-commit.course',
  steps: [
    makeChain(),
    ...namedChain,
    commit({
      'top-node': 'mid',
      speed: 1024,
      'auto-finalize': false,
      'auto-dismiss': false,
      'filter-node-name': 'filter',
    }),
    aWhile,
    query,
    { note: 'what cannot be done meanwhile' },
    ...['top', 'filter', 'mid', 'base'].flatMap((device) => [
      commit({ 'job-id': 'k', device }),
      cmd('block-stream', { 'job-id': 'k', device }),
      cmd('blockdev-del', { 'node-name': device }),
      cmd('block_resize', { 'node-name': device, size: MiB }),
    ]),
    { note: 'verbs' },
    verb('pause'),
    query,
    verb('complete'),
    verb('set-speed', { speed: 0 }),
    verb('resume'),
    { event: 'BLOCK_JOB_PENDING' },
    query,
    cmd('query-named-block-nodes', { flat: true }),
    verb('complete'),
    verb('finalize'),
    query,
    verb('dismiss'),
    look,
    cmd('blockdev-del', { 'node-name': 'mid' }),
    ...end,
    look,
    sameAsBefore('top'),
  ],
};

const active: Transcript = {
  name: 'block-commit.active',
  steps: [
    makeChain(),
    ...namedChain,
    commit({ speed: 1024, 'auto-finalize': false, 'filter-node-name': 'filter' }),
    aWhile,
    query,
    { note: 'what cannot be done meanwhile' },
    ...['top', 'filter', 'mid', 'base'].flatMap((device) => [
      commit({ 'job-id': 'k', device }),
      cmd('block-stream', { 'job-id': 'k', device }),
      cmd('blockdev-del', { 'node-name': device }),
      cmd('block_resize', { 'node-name': device, size: MiB }),
    ]),
    verb('complete'),
    verb('set-speed', { speed: 0 }),
    ready,
    query,
    cmd('query-named-block-nodes', { flat: true }),
    verb('pause'),
    verb('complete'),
    verb('resume'),
    { event: 'BLOCK_JOB_PENDING' },
    verb('complete'),
    verb('finalize'),
    query,
    look,
    { note: 'again, and it is only ended' },
    commit(),
    ready,
    verb('cancel'),
    ...toTheEnd,
    commit({ 'base-node': 'mid' }),
    ready,
    cmd('job-cancel', { id: 'j' }),
    { event: 'BLOCK_JOB_CANCELLED' },
    changed,
    changed,
    { note: 'again, and the daemon ends' },
    commit(),
    ready,
    ...end,
    look,
    sameAsBefore('top'),
    sameAsBefore('base'),
  ],
};

const server: Step = cmd('nbd-server-start', { addr: { type: 'unix', data: { path: '$DIR/nbd.sock' } } });
const io = (...commands: string[]): Step => ({
  run: [
    'qemu-io',
    ...['-f', 'raw'],
    ...commands.flatMap((each) => ['-c', each]),
    'nbd+unix:///top?socket=$DIR/nbd.sock',
  ],
});

const pivot: Transcript = {
  name: 'block-commit.pivot',
  steps: [
    makeChain(),
    impliedChain,
    server,
    cmd('block-export-add', { type: 'nbd', id: 'e', 'node-name': 'top', writable: true }),
    commit({ 'filter-node-name': 'filter' }),
    ready,
    cmd('query-named-block-nodes', { flat: true }),
    io('write -P 7 0 4k', 'write -z 128k 4k', 'read -P 2 64k 64k'),
    verb('complete'),
    ...toTheEnd,
    io('read -P 7 0 4k', 'read -P 0 128k 4k', 'read -P 1 4k 60k', 'write -P 8 512k 64k', 'flush'),
    cmd('query-block-exports'),
    cmd('blockdev-del', { 'node-name': 'top' }),
    cmd('block-export-del', { id: 'e' }),
    ...end,
    { run: ['qemu-io', '-r', '-c', 'read -P 8 512k 64k', '-c', 'read -P 3 256k 64k', 'base.qcow2'] },
    look,
  ],
};

/** One job per way to say where it begins and ends, each with images of its own. */
function ends(name: string, chain: readonly Step[], given: object): Transcript {
  return {
    name: `block-commit.ends-${name}`,
    steps: [
      makeChain(),
      ...chain,
      commit(given),
      ...toTheEnd,
      cmd('query-named-block-nodes', { flat: true }),
      ...end,
      look,
      sameAsBefore('top'),
    ],
  };
}

function faults(policy: string, errno: number, faulty: string, rest: object = {}): Transcript {
  const isWrite = faulty === 'base';
  const rule = { errno, once: true, ...(isWrite && { iotype: 'write' }) };
  return {
    name: `block-commit.on-error-${policy}-${errno}-${faulty}${'top-node' in rest ? '' : '-active'}`,
    steps: [
      makeChain(),
      ...faultyChain(faulty, [rule], isWrite ? 'write_aio' : 'read_aio'),
      commit({ 'on-error': policy, ...rest }),
      { event: 'BLOCK_JOB_ERROR' },
      aWhile,
      // How much a commit of the active layer has copied by then is its own affair.
      ...('top-node' in rest ? [query] : []),
      verb('resume'),
      aWhile,
      query,
      ...end,
      look,
      sameAsBefore('top'),
    ],
  };
}

function lengths(name: string, sizes: readonly [number, number, number], rest: object): Transcript {
  return {
    name: `block-commit.lengths-${name}`,
    steps: [
      makeChain(sizes),
      ...namedChain,
      commit(rest),
      ...('top-node' in rest ? [] : [ready, verb('complete')]),
      ...toTheEnd,
      ...end,
      look,
      sameAsBefore('top'),
      sameAsBefore('base'),
    ],
  };
}

const mid = { 'top-node': 'mid' };

export const commitTranscripts: readonly Transcript[] = [
  options,
  intermediate,
  active,
  pivot,
  ends('top', [impliedChain], { top: 'mid.qcow2' }),
  ends('top-path', [impliedChain], { top: '$DIR/mid.qcow2', base: '$DIR/base.qcow2' }),
  ends('top-node', namedChain, mid),
  ends('backing-file', namedChain, { ...mid, 'backing-file': 'base.qcow2' }),
  ends('other-file', [impliedChain], { top: 'mid.qcow2', 'backing-file': './base.qcow2' }),
  ...['report', 'stop', 'enospc'].flatMap((policy) => [
    faults(policy, 5, 'mid', mid),
    faults(policy, 28, 'base', { ...mid, 'backing-file': 'base.qcow2' }),
  ]),
  faults('ignore', 5, 'mid', mid),
  faults('report', 5, 'top'),
  faults('stop', 28, 'base'),
  faults('ignore', 28, 'base'),
  lengths('short-base', [MiB, MiB, 256 * KiB], mid),
  lengths('short-top', [512 * KiB, MiB, MiB], mid),
  lengths('short-base-active', [MiB, MiB, 256 * KiB], {}),
  lengths('short-mid-active', [MiB, 128 * KiB, MiB], {}),
];
