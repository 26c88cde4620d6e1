/**
 * libvirt works with ours: its storage pool makes, clones and resizes volumes by qblock-img in place of qemu-img, and a
 * machine of its own has its disks from our exports and copies one of them into a third.
 */

import { spawnSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { makeScratchDir, type RunningDaemon, repositoryRoot, startDaemon } from '../peers/daemons.ts';
import { requirePeer } from '../peers/requires.ts';
import { Guest, KERNEL_ARGUMENTS } from './guest.ts';
import { findKernel, makeInitramfs } from './initramfs.ts';
import { type Libvirt, startLibvirt } from './libvirt.ts';

const MiB = 1024 * 1024;
const SECRET = '11111111-2222-3333-4444-555555555555';

let dir: string;
let libvirt: Libvirt | null = null;
let daemon: RunningDaemon | null = null;
let guest: Guest | null = null;

beforeEach(() => {
  dir = makeScratchDir();
});

afterEach(async () => {
  await guest?.end();
  await daemon?.stop();
  await libvirt?.stop();
  guest = daemon = libvirt = null;
  rmSync(dir, { recursive: true, force: true });
});

/** A file with this text. */
function written(name: string, text: string): string {
  writeFileSync(path.join(dir, name), text);
  return path.join(dir, name);
}

/** What the original says of an image, less its path. */
function info(image: string): Record<string, unknown> {
  const result = spawnSync('qemu-img', ['info', '--output=json', image], { encoding: 'utf8' });
  expect(result.stderr).toBe('');
  return JSON.parse(result.stdout) as Record<string, unknown>;
}

const volume = (name: string, format: string, more = '', extra = ''): string =>
  `<volume><name>${name}</name><capacity unit='M'>64</capacity><target><format type='${format}'/>${more}</target>${extra}</volume>`;

const encryption = `<encryption format='luks'><secret type='passphrase' uuid='${SECRET}'/></encryption>`;

test('a storage pool', { timeout: 240_000 }, async (context) => {
  requirePeer(context, 'libvirt', 'qemu-img');
  libvirt = await startLibvirt(path.join(dir, 'libvirt'));
  const { virsh, calls } = libvirt;
  const pool = path.join(dir, 'pool');
  virsh('pool-define-as', 'p', 'dir', '--target', pool);
  virsh('pool-build', 'p');
  virsh('pool-start', 'p');
  const value = Buffer.from('letmein').toString('base64');
  virsh(
    'secret-define',
    written('secret.xml', `<secret ephemeral='no' private='no'><uuid>${SECRET}</uuid></secret>`),
  );
  virsh('secret-set-value', SECRET, '--file', written('value', value));
  const image = (name: string): string => path.join(pool, name);
  const make = (name: string, format: string, more?: string, extra?: string): Record<string, unknown> => {
    virsh('vol-create', 'p', written(`${name}.xml`, volume(name, format, more, extra)));
    return info(image(name));
  };

  for (const format of ['qcow2', 'vmdk', 'vdi', 'qed', 'vpc', 'qcow'])
    expect(make(`a.${format}`, format)).toMatchObject({ format, 'virtual-size': expect.any(Number) });
  expect(
    make(
      'b.qcow2',
      'qcow2',
      "<compat>1.1</compat><clusterSize unit='KiB'>128</clusterSize><features><lazy_refcounts/></features>",
      `<backingStore><path>${image('a.qcow2')}</path><format type='qcow2'/></backingStore>`,
    ),
  ).toMatchObject({
    'cluster-size': 128 * 1024,
    'full-backing-filename': image('a.qcow2'),
    'backing-filename-format': 'qcow2',
    'format-specific': { data: { compat: '1.1', 'lazy-refcounts': true } },
  });
  expect(make('e.qcow2', 'qcow2', encryption)).toMatchObject({ encrypted: true });
  expect(make('e.raw', 'raw', encryption)).toMatchObject({ format: 'luks' });
  for (const name of ['a.qcow2', 'e.qcow2', 'e.raw']) {
    virsh('vol-resize', name, '96M', '--pool', 'p');
    expect(info(image(name))['virtual-size']).toBe(96 * MiB);
  }
  virsh('vol-resize', 'a.qcow2', '32M', '--pool', 'p', '--shrink');
  expect(info(image('a.qcow2'))['virtual-size']).toBe(32 * MiB);
  for (const format of ['vmdk', 'vdi', 'qcow2']) {
    virsh('vol-clone', `a.${format}`, `c.${format}`, '--pool', 'p');
    expect(info(image(`c.${format}`))).toMatchObject({ format });
    expect(virsh('vol-info', `c.${format}`, '--pool', 'p')).toContain('Capacity:');
  }
  const verbs = calls().map((line) => line.split(' ')[0]);
  expect(verbs.filter((verb) => verb === 'create').length).toBe(9);
  expect(verbs.filter((verb) => verb === 'resize').length).toBe(4);
  expect(verbs.filter((verb) => verb === 'convert').length).toBe(3);
});

const domain = (kernel: string): string => `
<domain type='qemu'><name>vm</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>${kernel}</kernel><initrd>${dir}/initrd</initrd>
    <cmdline>${KERNEL_ARGUMENTS}</cmdline></os>
  <features><acpi/></features>
  <devices>
    <disk type='vhostuser' device='disk'><driver name='qemu' type='raw' queues='2'/>
      <source type='unix' path='${dir}/vhost'><reconnect enabled='yes' timeout='1'/></source>
      <target dev='vda' bus='virtio'/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw' discard='unmap'/>
      <source protocol='nbd' name='b'><host transport='unix' socket='${dir}/nbd'/></source>
      <target dev='vdb' bus='virtio'/></disk>
    <serial type='unix'><source mode='bind' path='${dir}/serial'/></serial>
  </devices></domain>`;

const copyTarget = (): string => `
<disk type='network' device='disk'><driver name='qemu' type='raw'/>
  <source protocol='nbd' name='c'><host transport='unix' socket='${dir}/nbd'/></source></disk>`;

test('a machine with our disks', { timeout: 400_000 }, async (context) => {
  requirePeer(context, 'libvirt', 'qemu-img', 'qemu-system-x86_64', 'guest kernel');
  const found = findKernel();
  if (found === null) throw new Error('no kernel');
  writeFileSync(path.join(dir, 'initrd'), makeInitramfs(found.modules));
  const img = path.join(repositoryRoot, 'daemon/bin/qblock-img');
  daemon = await startDaemon('qblockd', { dir });
  const qmp = await daemon.connect();
  await qmp.negotiate();
  await qmp.execute('nbd-server-start', { addr: { type: 'unix', data: { path: `${dir}/nbd` } } });
  for (const name of ['a', 'b', 'c']) {
    expect(spawnSync(img, ['create', '-q', '-f', 'qcow2', `${dir}/${name}.qcow2`, '128M']).status).toBe(0);
    const file = { driver: 'file', filename: `${dir}/${name}.qcow2` };
    await qmp.execute('blockdev-add', { driver: 'qcow2', 'node-name': name, discard: 'unmap', file });
    const door =
      name === 'a'
        ? { type: 'vhost-user-blk', 'num-queues': 2, addr: { type: 'unix', path: `${dir}/vhost` } }
        : { type: 'nbd', name };
    await qmp.execute('block-export-add', { id: name, 'node-name': name, writable: true, ...door });
  }
  libvirt = await startLibvirt(path.join(dir, 'libvirt'));
  libvirt.virsh('create', '--paused', written('vm.xml', domain(found.kernel)));
  guest = Guest.attach(connect(path.join(dir, 'serial')));
  libvirt.virsh('resume', 'vm');
  await guest.waitFor(/^READY$/m);
  await guest.run(
    'for i in a b; do /sbin/mke2fs -q -F -t ext4 /dev/vd$i && mkdir /m$i && mount /dev/vd$i /m$i || exit 1; done',
  );
  await guest.run(
    'dd if=/dev/urandom of=/ma/f bs=64k count=64 2>/dev/null && cp /ma/f /mb/f && sync && sha256sum /ma/f /mb/f > /tmp/sums',
  );
  libvirt.virsh(
    ...['blockcopy', 'vm', 'vdb', '--xml', written('copy.xml', copyTarget())],
    ...['--transient-job', '--reuse-external', '--wait', '--pivot'],
  );
  expect(libvirt.virsh('domblklist', 'vm')).toMatch(/vdb +c$/m);
  await guest.run('cp /mb/f /mb/g && sync && echo 3 > /proc/sys/vm/drop_caches && sha256sum -c /tmp/sums');
  await guest.run(
    'cmp /mb/f /mb/g && umount /ma /mb && /sbin/e2fsck -fn /dev/vda && /sbin/e2fsck -fn /dev/vdb',
  );
  libvirt.virsh('destroy', 'vm');
  await qmp.execute('quit');
  qmp.close();
  for (const name of ['a', 'b', 'c']) {
    const result = spawnSync('qemu-img', ['check', `${dir}/${name}.qcow2`], { encoding: 'utf8' });
    expect(result.stdout).toContain('No errors');
  }
  // What was written after the copy is in the copy alone.
  expect(spawnSync('qemu-img', ['compare', `${dir}/b.qcow2`, `${dir}/c.qcow2`]).status).toBe(1);
});
