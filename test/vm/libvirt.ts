/**
 * A libvirtd of the tests' own, in a mount namespace where its folders are empty, with our qblock-img as its qemu-img.
 *
 * Not here: what it is asked to do (libvirt.test.ts).
 */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { repositoryRoot } from '../peers/daemons.ts';

/** Folders of the whole machine that it is to leave alone. */
const OWN_FOLDERS = ['/run/libvirt', '/var/lib/libvirt', '/var/cache/libvirt', '/var/log/libvirt'];
const START_MS = 60_000;

export interface Libvirt {
  /** Runs a command of virsh's; returns what it prints. Throws when it fails. */
  virsh(...args: string[]): string;
  /** The command lines with which it has called qemu-img so far. */
  calls(): string[];
  stop(): Promise<void>;
}

/** Starts it with its files in `dir`, a folder of its own. */
export async function startLibvirt(dir: string): Promise<Libvirt> {
  const own = (name: string): string => path.join(dir, name);
  for (const name of ['bin', 'etc', 'sock']) mkdirSync(own(name), { recursive: true });
  writeFileSync(own('etc/libvirtd.conf'), `unix_sock_dir = "${own('sock')}"\nauth_unix_rw = "none"\n`);
  writeFileSync(
    own('etc/qemu.conf'),
    'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nstdio_handler = "file"\ncgroup_controllers = []\n',
  );
  const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
  writeFileSync(own('bin/qemu-img'), `#!/bin/sh\necho "$*" >> '${own('calls')}'\nexec '${img}' "$@"\n`);
  chmodSync(own('bin/qemu-img'), 0o755);
  const script = [
    ...OWN_FOLDERS.map((name) => `mkdir -p ${name} && mount -t tmpfs none ${name}`),
    'mkdir -p /etc/libvirt && mount --bind "$1/etc" /etc/libvirt',
    'exec /usr/sbin/libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$1/pid"',
  ].join(' && ');
  const child: ChildProcess = spawn('unshare', ['--mount', 'sh', '-c', script, 'sh', dir], {
    env: { ...process.env, PATH: `${own('bin')}:${process.env.PATH}` },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let log = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    log += chunk.toString();
  });
  const closed = new Promise((resolve) => child.once('close', resolve));
  const virsh = (...args: string[]): string => {
    const uri = `qemu+unix:///system?socket=${own('sock/libvirt-sock')}`;
    const result = spawnSync('virsh', ['--quiet', '--connect', uri, ...args], { encoding: 'utf8' });
    if (result.status !== 0) throw new Error(`virsh ${args.join(' ')}: ${result.stderr}\n${log}`);
    return result.stdout.trim();
  };
  const deadline = Date.now() + START_MS;
  while (!existsSync(own('sock/libvirt-sock'))) {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`libvirtd did not start: ${log}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  return {
    virsh,
    calls: () => (existsSync(own('calls')) ? readFileSync(own('calls'), 'utf8').trim().split('\n') : []),
    stop: async () => {
      // Machines outlive their libvirtd.
      for (const name of virsh('list', '--name').split('\n')) if (name !== '') virsh('destroy', name);
      child.kill('SIGTERM');
      await closed;
    },
  };
}
