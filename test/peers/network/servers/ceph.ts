/**
 * A Ceph cluster of one's own on loopback: one monitor and one OSD, which keeps its objects in memory. For tests and for
 * `npm run bench:network`.
 */

import { type ExecFileSyncOptions, execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { freePort } from './ports.ts';
import { signalFamily } from './sshd.ts';

export interface CephCluster {
  readonly conf: string;
  /** Runs a command of Ceph's with the cluster's configuration; what it prints. */
  run(program: string, ...args: string[]): string;
  /** Stops (or continues) the OSD where it is. */
  freezeOsd(frozen: boolean): void;
  kill(): void;
}

export interface CephSettings {
  /** What the OSD may hold, in bytes. */
  readonly memoryBytes?: number;
  /** Put before each command line: a processor to be on, for instance. */
  readonly prefix?: readonly string[];
}

const MEMORY_BYTES = 512 * 1024 * 1024;

/** A monitor that has only just begun refuses commands for a moment. */
async function patiently(action: () => unknown): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      action();
      return;
    } catch (error) {
      if (tries === 20) throw error;
      await new Promise((resolve) => setTimeout(resolve, 250));
    }
  }
}

/** On a busy machine the parts of a cluster do not always find each other. */
const MAX_STARTS = 3;

/** Brings the cluster up with the pool "rbd", in some 6 s. */
export async function startCeph(dir: string, settings: CephSettings = {}): Promise<CephCluster> {
  for (let starts = 1; ; starts++) {
    const folder = path.join(dir, `ceph${starts}`);
    mkdirSync(folder);
    try {
      return await startCluster(folder, settings);
    } catch (error) {
      if (starts === MAX_STARTS) throw error;
    }
  }
}

async function startCluster(
  dir: string,
  { memoryBytes = MEMORY_BYTES, prefix = [] }: CephSettings,
): Promise<CephCluster> {
  const port = await freePort();
  const fsid = randomUUID();
  const conf = path.join(dir, 'ceph.conf');
  const places = { monitor: path.join(dir, 'mon.a'), osd: path.join(dir, 'osd.0') };
  for (const place of Object.values(places)) mkdirSync(place);
  const lines = [
    '[global]',
    `fsid = ${fsid}`,
    `mon_host = v1:127.0.0.1:${port}`,
    ...['cluster', 'service', 'client'].map((who) => `auth_${who}_required = none`),
    'public_addr = 127.0.0.1',
    `run_dir = ${dir}`,
    `log_file = ${dir}/$name.log`,
    `admin_socket = ${dir}/$name.$pid.asok`,
    `pid_file = ${dir}/$name.pid`,
    'osd_pool_default_size = 1',
    'osd_pool_default_min_size = 1',
    'osd_crush_chooseleaf_type = 0',
    'mon_allow_pool_size_one = true',
    'osd_pool_default_pg_autoscale_mode = off',
    '[mon.a]',
    `mon_data = ${places.monitor}`,
    '[osd.0]',
    `osd_data = ${places.osd}`,
    'osd_objectstore = memstore',
    `memstore_device_bytes = ${memoryBytes}`,
  ];
  writeFileSync(conf, `${lines.join('\n')}\n`);
  const options: ExecFileSyncOptions = { stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 };
  const run = (program: string, ...args: string[]): string => {
    const [first = program, ...rest] = [...prefix, program, '-c', conf, ...args];
    return String(execFileSync(first, rest, options));
  };
  const map = path.join(dir, 'monmap');
  const address = `[v1:127.0.0.1:${port}]`;
  execFileSync('monmaptool', ['--create', '--clobber', '--fsid', fsid, '--addv', 'a', address, map], options);
  const signal = (name: string, how: NodeJS.Signals): void => {
    const file = path.join(dir, `${name}.pid`);
    if (existsSync(file)) signalFamily(Number(readFileSync(file, 'utf8')), how);
  };
  const kill = (): void => {
    for (const name of ['osd.0', 'mon.a']) signal(name, 'SIGKILL');
  };
  // It may speak to the monitor before it knows which cluster that is of ("wrong fsid"), and ends then.
  const startOsd = (): Promise<void> => patiently(() => run('ceph-osd', '-i', '0'));
  try {
    run('ceph-mon', '--mkfs', '-i', 'a', '--monmap', map);
    run('ceph-mon', '-i', 'a');
    const uuid = randomUUID();
    await patiently(() => run('ceph', 'osd', 'new', uuid));
    run('ceph-osd', '-i', '0', '--mkfs', '--osd-uuid', uuid);
    await startOsd();
    run('ceph', 'osd', 'pool', 'create', 'rbd', '8');
    run('rbd', 'pool', 'init', 'rbd');
  } catch (error) {
    kill();
    throw error;
  }
  return { conf, run, freezeOsd: (frozen) => signal('osd.0', frozen ? 'SIGSTOP' : 'SIGCONT'), kill };
}
