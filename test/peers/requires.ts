/**
 * What a test does when a program it is compared with is not installed: skip, where everybody sees it, or fail when
 * REQUIRE_PEERS=1 says that this machine must have them all.
 */

import { spawnSync } from 'node:child_process';
import { appendFileSync } from 'node:fs';
import type { TestContext } from 'vitest';

/** How to find out whether a peer is there, and which Debian package has it. */
interface Peer {
  readonly probe: readonly string[];
  readonly debianPackage: string;
}

/** Every program the tests use that is not part of Node. */
export const PEERS = {
  'qemu-storage-daemon': { probe: ['qemu-storage-daemon', '--version'], debianPackage: 'qemu-system-common' },
  'qemu-pr-helper': { probe: ['qemu-pr-helper', '--version'], debianPackage: 'qemu-system-common' },
  'qemu-img': { probe: ['qemu-img', '--version'], debianPackage: 'qemu-utils' },
  'qemu-io': { probe: ['qemu-io', '--version'], debianPackage: 'qemu-utils' },
  'qemu-nbd': { probe: ['qemu-nbd', '--version'], debianPackage: 'qemu-utils' },
  nbdkit: { probe: ['nbdkit', '--version'], debianPackage: 'nbdkit' },
  nbdinfo: { probe: ['nbdinfo', '--version'], debianPackage: 'libnbd-bin' },
  nbdcopy: { probe: ['nbdcopy', '--version'], debianPackage: 'libnbd-bin' },
  nbdsh: { probe: ['/usr/bin/python3', '-c', 'import nbd'], debianPackage: 'python3-libnbd' },
  pyvmdk: { probe: ['/usr/bin/python3', '-c', 'import pyvmdk'], debianPackage: 'python3-libvmdk' },
  pyvhdi: { probe: ['/usr/bin/python3', '-c', 'import pyvhdi'], debianPackage: 'python3-libvhdi' },
  python3: { probe: ['python3', '--version'], debianPackage: 'python3' },
  fio: { probe: ['fio', '--version'], debianPackage: 'fio' },
  ss: { probe: ['ss', '-V'], debianPackage: 'iproute2' },
  socat: { probe: ['socat', '-V'], debianPackage: 'socat' },
  certtool: { probe: ['certtool', '--version'], debianPackage: 'gnutls-bin' },
  keyctl: { probe: ['keyctl', 'show', '@u'], debianPackage: 'keyutils' },
  psktool: { probe: ['psktool', '--version'], debianPackage: 'gnutls-bin' },
  // Mounting by root; fusermount3 for everybody else.
  fuse: { probe: ['sh', '-c', 'test -w /dev/fuse && fusermount3 --version'], debianPackage: 'fuse3' },
  'mkfs.xfs': { probe: ['mkfs.xfs', '-V'], debianPackage: 'xfsprogs' },
  'mkfs.btrfs': { probe: ['mkfs.btrfs', '-V'], debianPackage: 'btrfs-progs' },
  'mkfs.ext4': { probe: ['mkfs.ext4', '-V'], debianPackage: 'e2fsprogs' },
  sshd: { probe: ['test', '-x', '/usr/sbin/sshd'], debianPackage: 'openssh-server' },
  nginx: { probe: ['test', '-x', '/usr/sbin/nginx'], debianPackage: 'nginx-light' },
  vsftpd: { probe: ['test', '-x', '/usr/sbin/vsftpd'], debianPackage: 'vsftpd' },
  squid: { probe: ['test', '-x', '/usr/sbin/squid'], debianPackage: 'squid' },
  tinyproxy: { probe: ['tinyproxy', '-v'], debianPackage: 'tinyproxy' },
  openssl: { probe: ['openssl', 'version'], debianPackage: 'openssl' },
  ceph: {
    probe: ['sh', '-c', 'ceph-mon --version && ceph-osd --version && rbd --version'],
    debianPackage: 'ceph-mon, ceph-osd, ceph-common',
  },
  tgtd: {
    probe: ['sh', '-c', 'test -x /usr/sbin/tgtd && test "$(id -u)" = 0'],
    debianPackage: 'tgt, as root',
  },
  libiscsi: { probe: ['sh', '-c', 'ls /usr/lib/*/libiscsi.so.7'], debianPackage: 'libiscsi7' },
  'nfs-ganesha': {
    probe: [
      'sh',
      '-c',
      'ganesha.nfsd -v && test -x /usr/sbin/rpcbind && test "$(id -u)" = 0 && ls /usr/lib/*/ganesha/libfsalvfs.so',
    ],
    debianPackage: 'nfs-ganesha, nfs-ganesha-vfs, rpcbind, as root',
  },
  libnfs: { probe: ['sh', '-c', 'ls /usr/lib/*/libnfs.so.13'], debianPackage: 'libnfs13' },
  librbd: { probe: ['sh', '-c', 'ls /usr/lib/*/librbd.so.1'], debianPackage: 'librbd1' },
  glusterd: {
    probe: ['sh', '-c', 'glusterd --version && gluster --version && test "$(id -u)" = 0'],
    debianPackage: 'glusterfs-server, as root',
  },
  libgfapi: { probe: ['sh', '-c', 'ls /usr/lib/*/libgfapi.so.0'], debianPackage: 'libgfapi0' },
  'qemu-block-extra': {
    probe: ['sh', '-c', 'ls /usr/lib/*/qemu/block-ssh.so'],
    debianPackage: 'qemu-block-extra',
  },
  'qemu-system-x86_64': {
    probe: ['qemu-system-x86_64', '--version'],
    debianPackage: 'qemu-system-x86',
  },
  libvirt: {
    probe: [
      'sh',
      '-c',
      'test -x /usr/sbin/libvirtd && virsh --version && getent passwd libvirt-qemu && unshare --mount true',
    ],
    debianPackage: 'libvirt-daemon-system, libvirt-clients, as root',
  },
  // A kernel with its modules, and what is put around it.
  'guest kernel': {
    probe: ['sh', '-c', 'ls /lib/modules/*/kernel/drivers/block/virtio_blk.ko && busybox true && mke2fs -V'],
    debianPackage: 'linux-image-cloud-amd64, busybox-static, e2fsprogs',
  },
  man: {
    probe: ['sh', '-c', 'man --version && mandoc -h; test $? -le 5'],
    debianPackage: 'man-db, groff, mandoc',
  },
  zsh: { probe: ['zsh', '--version'], debianPackage: 'zsh' },
  systemd: { probe: ['systemd-analyze', '--version'], debianPackage: 'systemd' },
  'npm registry': {
    probe: ['npm', 'view', 'koffi', 'version', '--fetch-retries=0', '--fetch-timeout=5000'],
    debianPackage: 'npm, and a network',
  },
  'dpkg-deb': { probe: ['dpkg-deb', '--version'], debianPackage: 'dpkg' },
  chromium: { probe: ['chromium', '--version'], debianPackage: 'chromium' },
  strace: { probe: ['strace', '-V'], debianPackage: 'strace' },
  cryptsetup: { probe: ['cryptsetup', '--version'], debianPackage: 'cryptsetup-bin' },
  mtools: { probe: ['mdir', '-V'], debianPackage: 'mtools' },
  'fsck.fat': { probe: ['mkfs.fat', '--help'], debianPackage: 'dosfstools' },
} as const satisfies Record<string, Peer>;

export type PeerName = keyof typeof PEERS;

/** Whether a missing peer is a failure. */
export const peersRequired = process.env.REQUIRE_PEERS === '1';

/** Whether file systems in files can be mounted: not by users, nor in most containers. */
export function hasLoopDevices(): boolean {
  return process.getuid?.() === 0 && spawnSync('losetup', ['--find'], { stdio: 'ignore' }).status === 0;
}

/** Whether the peer answers. */
export function hasPeer(name: PeerName): boolean {
  const [program, ...args] = PEERS[name].probe;
  return spawnSync(program, args, { stdio: 'ignore' }).status === 0;
}

/** The first of `names` that is missing; null when all are there. */
export function missingPeer(names: readonly PeerName[]): PeerName | null {
  return names.find((name) => !hasPeer(name)) ?? null;
}

/**
 * Skips the test, visibly, unless every named peer is installed; with REQUIRE_PEERS=1 a missing one is a failure.
 * Skipped peers are also noted in the file SKIPPED_PEERS_LOG names, from which `npm test` prints its summary.
 */
export function requirePeer(context: TestContext, ...names: PeerName[]): void {
  const missing = missingPeer(names);
  if (missing === null) return;
  const note = `${missing} is missing (Debian package ${PEERS[missing].debianPackage})`;
  if (peersRequired) throw new Error(`REQUIRE_PEERS=1, but ${note}`);
  const log = process.env.SKIPPED_PEERS_LOG;
  if (log !== undefined) appendFileSync(log, `${note}: ${context.task.name}\n`);
  context.skip(note);
}
