/**
 * The one list of block drivers.
 *
 * What nearly every user needs is there at once. The others are listed by their faces, and loaded when a node of theirs
 * is opened or an image made: a new driver goes there. A face has what its driver has of FACE_MEMBERS (block/contract/face.ts);
 * callbacks of a face come from a small file beside the driver.
 */

import type { BlockdevDriver } from '../../schema/generated/types.ts';
import type { BlockDriver } from '../block/contract/driver.ts';
import type { LazyDriver } from '../block/contract/face.ts';
import { blkdebugNames, blkverifyNames } from './filters/test-names.ts';
import { probeBochs } from './formats/bochs/probe.ts';
import { probeCloop } from './formats/cloop/probe.ts';
import { probeDmg } from './formats/dmg/probe.ts';
import { probeLuks } from './formats/luks/probe.ts';
import { probeParallels } from './formats/parallels/probe.ts';
import { probeQcow } from './formats/qcow/probe.ts';
import { qcow2 } from './formats/qcow2/driver.ts';
import { probeQed } from './formats/qed/probe.ts';
import { raw } from './formats/raw.ts';
import { probeVdi } from './formats/vdi/probe.ts';
import { probeVhdx } from './formats/vhdx/probe.ts';
import { probeVmdk } from './formats/vmdk/probe.ts';
import { probeVpc } from './formats/vpc/probe.ts';
import { file, hostCdrom, hostDevice } from './protocols/file/file.ts';
import { glusterNames } from './protocols/gluster/names.ts';
import { ftpNames, ftpsNames, httpNames, httpsNames } from './protocols/http/names.ts';
import { iscsiNames } from './protocols/iscsi/names.ts';
import { nbdNames } from './protocols/nbd/names.ts';
import { nfsNames } from './protocols/nfs/names.ts';
import { nullAioNames, nullCoNames } from './protocols/null-names.ts';
import { nvmeNames } from './protocols/nvme-names.ts';
import { rbdNames } from './protocols/rbd/names.ts';
import { s3Names } from './protocols/s3/names.ts';
import { sshNames } from './protocols/ssh/names.ts';
import { vvfatNames } from './protocols/vvfat/names.ts';

const whole = { file, host_cdrom: hostCdrom, host_device: hostDevice, qcow2, raw } as const;

const lazy = {
  blkdebug: {
    name: 'blkdebug',
    kind: 'filter',
    isProtocolFilter: true,
    ...blkdebugNames,
    load: async () => (await import('./filters/blkdebug/blkdebug.ts')).blkdebug as BlockDriver,
  },
  blklogwrites: {
    name: 'blklogwrites',
    kind: 'filter',
    load: async () => (await import('./filters/blklogwrites.ts')).blklogwrites as BlockDriver,
  },
  blkreplay: {
    name: 'blkreplay',
    kind: 'filter',
    load: async () => (await import('./filters/blkreplay.ts')).blkreplay as BlockDriver,
  },
  blkverify: {
    name: 'blkverify',
    kind: 'filter',
    isProtocolFilter: true,
    ...blkverifyNames,
    load: async () => (await import('./filters/blkverify.ts')).blkverify as BlockDriver,
  },
  bochs: {
    name: 'bochs',
    kind: 'format',
    supportsBacking: true,
    probe: probeBochs,
    load: async () => (await import('./formats/bochs/driver.ts')).bochs as BlockDriver,
  },
  cache: {
    name: 'cache',
    kind: 'filter',
    load: async () => (await import('./filters/cache/cache.ts')).cache as BlockDriver,
  },
  cloop: {
    name: 'cloop',
    kind: 'format',
    probe: probeCloop,
    load: async () => (await import('./formats/cloop/driver.ts')).cloop as BlockDriver,
  },
  compress: {
    name: 'compress',
    kind: 'filter',
    load: async () => (await import('./filters/compress.ts')).compress as BlockDriver,
  },
  'copy-before-write': {
    name: 'copy-before-write',
    kind: 'filter',
    load: async () => (await import('./filters/copy-before-write.ts')).copyBeforeWrite as BlockDriver,
  },
  'copy-on-read': {
    name: 'copy-on-read',
    kind: 'filter',
    load: async () => (await import('./filters/copy-on-read.ts')).copyOnRead as BlockDriver,
  },
  dmg: {
    name: 'dmg',
    kind: 'format',
    probe: probeDmg,
    load: async () => (await import('./formats/dmg/driver.ts')).dmg as BlockDriver,
  },
  ftp: {
    name: 'ftp',
    kind: 'protocol',
    ...ftpNames,
    load: async () => (await import('./protocols/ftp/ftp.ts')).ftp as BlockDriver,
  },
  ftps: {
    name: 'ftps',
    kind: 'protocol',
    ...ftpsNames,
    load: async () => (await import('./protocols/ftp/ftp.ts')).ftps as BlockDriver,
  },
  gluster: {
    name: 'gluster',
    kind: 'protocol',
    ...glusterNames,
    load: async () => (await import('./protocols/gluster/gluster.ts')).gluster as BlockDriver,
  },
  luks: {
    name: 'luks',
    kind: 'format',
    probe: probeLuks,
    load: async () => (await import('./formats/luks/driver.ts')).luks as BlockDriver,
  },
  http: {
    name: 'http',
    kind: 'protocol',
    ...httpNames,
    load: async () => (await import('./protocols/http/http.ts')).http as BlockDriver,
  },
  https: {
    name: 'https',
    kind: 'protocol',
    ...httpsNames,
    load: async () => (await import('./protocols/http/http.ts')).https as BlockDriver,
  },
  io_uring: {
    name: 'io_uring',
    kind: 'protocol',
    load: async () => (await import('./protocols/io-uring.ts')).ioUring as BlockDriver,
  },
  iscsi: {
    name: 'iscsi',
    kind: 'protocol',
    ...iscsiNames,
    load: async () => (await import('./protocols/iscsi/iscsi.ts')).iscsi as BlockDriver,
  },
  nbd: {
    name: 'nbd',
    kind: 'protocol',
    ...nbdNames,
    load: async () => (await import('./protocols/nbd/nbd.ts')).nbd as BlockDriver,
  },
  nfs: {
    name: 'nfs',
    kind: 'protocol',
    ...nfsNames,
    load: async () => (await import('./protocols/nfs/nfs.ts')).nfs as BlockDriver,
  },
  'null-aio': {
    name: 'null-aio',
    ...nullAioNames,
    kind: 'protocol',
    load: async () => (await import('./protocols/null.ts')).nullAio as BlockDriver,
  },
  'null-co': {
    name: 'null-co',
    ...nullCoNames,
    kind: 'protocol',
    load: async () => (await import('./protocols/null.ts')).nullCo as BlockDriver,
  },
  nvme: {
    name: 'nvme',
    kind: 'protocol',
    ...nvmeNames,
    load: async () => (await import('./protocols/unavailable.ts')).nvme as BlockDriver,
  },
  'nvme-io_uring': {
    name: 'nvme-io_uring',
    kind: 'protocol',
    load: async () => (await import('./protocols/unavailable.ts')).nvmeIoUring as BlockDriver,
  },
  parallels: {
    name: 'parallels',
    kind: 'format',
    supportsBacking: true,
    probe: probeParallels,
    load: async () => (await import('./formats/parallels/driver.ts')).parallels as BlockDriver,
  },
  preallocate: {
    name: 'preallocate',
    kind: 'filter',
    load: async () => (await import('./filters/preallocate.ts')).preallocate as BlockDriver,
  },
  qcow: {
    name: 'qcow',
    kind: 'format',
    supportsBacking: true,
    probe: probeQcow,
    load: async () => (await import('./formats/qcow/driver.ts')).qcow as BlockDriver,
  },
  qed: {
    name: 'qed',
    kind: 'format',
    supportsBacking: true,
    probe: probeQed,
    load: async () => (await import('./formats/qed/driver.ts')).qed as BlockDriver,
  },
  quorum: {
    name: 'quorum',
    kind: 'format',
    load: async () => (await import('./filters/quorum/quorum.ts')).quorum as BlockDriver,
  },
  rbd: {
    name: 'rbd',
    kind: 'protocol',
    ...rbdNames,
    load: async () => (await import('./protocols/rbd/rbd.ts')).rbd as BlockDriver,
  },
  readahead: {
    name: 'readahead',
    kind: 'filter',
    load: async () => (await import('./filters/reads/readahead.ts')).readahead as BlockDriver,
  },
  replication: {
    name: 'replication',
    kind: 'filter',
    load: async () => (await import('./filters/replication.ts')).replication as BlockDriver,
  },
  retry: {
    name: 'retry',
    kind: 'filter',
    load: async () => (await import('./filters/reads/retry.ts')).retry as BlockDriver,
  },
  'snapshot-access': {
    name: 'snapshot-access',
    kind: 'format',
    load: async () => (await import('./filters/snapshot-access.ts')).snapshotAccess as BlockDriver,
  },
  s3: {
    name: 's3',
    kind: 'protocol',
    ...s3Names,
    load: async () => (await import('./protocols/s3/s3.ts')).s3 as BlockDriver,
  },
  ssh: {
    name: 'ssh',
    kind: 'protocol',
    ...sshNames,
    load: async () => (await import('./protocols/ssh/ssh.ts')).ssh as BlockDriver,
  },
  throttle: {
    name: 'throttle',
    kind: 'filter',
    load: async () => (await import('./filters/throttle.ts')).throttle as BlockDriver,
  },
  vdi: {
    name: 'vdi',
    kind: 'format',
    probe: probeVdi,
    load: async () => (await import('./formats/vdi/driver.ts')).vdi as BlockDriver,
  },
  vhdx: {
    name: 'vhdx',
    kind: 'format',
    supportsBacking: true,
    probe: probeVhdx,
    load: async () => (await import('./formats/vhdx/driver.ts')).vhdx as BlockDriver,
  },
  'virtio-blk-vfio-pci': {
    name: 'virtio-blk-vfio-pci',
    kind: 'protocol',
    load: async () => (await import('./protocols/unavailable.ts')).virtioBlkVfioPci as BlockDriver,
  },
  'virtio-blk-vhost-vdpa': {
    name: 'virtio-blk-vhost-vdpa',
    kind: 'protocol',
    load: async () => (await import('./protocols/unavailable.ts')).virtioBlkVhostVdpa as BlockDriver,
  },
  'virtio-blk-vhost-user': {
    name: 'virtio-blk-vhost-user',
    kind: 'protocol',
    load: async () =>
      (await import('./protocols/virtio-blk-vhost-user.ts')).virtioBlkVhostUser as BlockDriver,
  },
  vmdk: {
    name: 'vmdk',
    kind: 'format',
    supportsBacking: true,
    probe: probeVmdk,
    load: async () => (await import('./formats/vmdk/driver.ts')).vmdk as BlockDriver,
  },
  vpc: {
    name: 'vpc',
    kind: 'format',
    supportsBacking: true,
    probe: probeVpc,
    load: async () => (await import('./formats/vpc/driver.ts')).vpc as BlockDriver,
  },
  vvfat: {
    name: 'vvfat',
    kind: 'protocol',
    ...vvfatNames,
    load: async () => (await import('./protocols/vvfat/vvfat.ts')).vvfat as BlockDriver,
  },
} as const satisfies Readonly<Record<string, LazyDriver>>;

export const drivers = { ...lazy, ...whole } as const satisfies Readonly<
  Record<BlockdevDriver, BlockDriver | LazyDriver>
>;
