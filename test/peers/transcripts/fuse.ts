/**
 * Transcripts of FUSE exports: the command's errors, what the file looks like and does, its end.
 *
 * The file's behaviour is told by a script in Python (system calls and their errno names), run beside each daemon.
 */

import { cmd, type Step, type Transcript } from '../transcript.ts';

const MiB = 1024 * 1024;
const SIZE = 16 * MiB;

const disk: Step = cmd('blockdev-add', { driver: 'file', 'node-name': 'f', filename: '$DIR/disk' });
const add = (options: object): Step =>
  cmd('block-export-add', { type: 'fuse', id: 'e', 'node-name': 'f', mountpoint: '$DIR/m', ...options });
const del = (id: string): Step => cmd('block-export-del', { id });
const list = cmd('query-block-exports');
const shell = (script: string): Step => ({ run: ['sh', '-c', `cd $DIR; ${script}`] });
const unmountAll = ['sh', '-c', 'for i in 1 2 3 4; do umount $DIR/m $DIR/m2 2>/dev/null; done; true'];

/** What system calls on the file say: one line each. `size` is the file's. */
const systemCalls = `
import ctypes, errno, fcntl, mmap, os, sys
name, size = sys.argv[1], int(sys.argv[2])
f = os.open(name, os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
def t(what, call):
    try: print(what, call())
    except OSError as e: print(what, errno.errorcode[e.errno])
def fallocate(mode, offset, length):
    if libc.fallocate64(f, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length)) < 0:
        raise OSError(ctypes.get_errno(), '')
    return os.fstat(f).st_size
t('write at the end', lambda: os.pwrite(f, b'x' * 200, size - 100))
t('write at it', lambda: os.pwrite(f, b'x' * 200, size))
t('write behind it', lambda: os.pwrite(f, b'x' * 200, size + 5000))
for offset in (size - 100, size, size + 500):
    t('read %d' % (offset - size), lambda: len(os.pread(f, 200, offset)))
for offset in (0, 4096, size, size + 1):
    t('data %d' % offset, lambda: os.lseek(f, offset, os.SEEK_DATA))
    t('hole %d' % offset, lambda: os.lseek(f, offset, os.SEEK_HOLE))
t('end', lambda: os.lseek(f, 0, os.SEEK_END))
for mode in (0, 1, 2, 3, 8, 16, 17, 32, 64, 19):
    for offset, length in ((0, 4096), (1 << 23, 1 << 20), (size - 4096, 8192), (size, 4096), (size + 8192, 4096)):
        t('fallocate %d %d+%d' % (mode, offset, length), lambda: fallocate(mode, offset, length))
t('fsync', lambda: os.fsync(f))
t('fdatasync', lambda: os.fdatasync(f))
t('statvfs', lambda: os.statvfs(name))
t('getxattr', lambda: os.getxattr(name, 'user.x'))
t('setxattr', lambda: os.setxattr(name, 'user.x', b'a'))
t('listxattr', lambda: os.listxattr(name))
t('lockf', lambda: fcntl.lockf(f, fcntl.LOCK_EX))
t('flock', lambda: fcntl.flock(f, fcntl.LOCK_EX))
t('BLKDISCARD', lambda: fcntl.ioctl(f, 0x1277, b'a' * 16))
t('FIEMAP', lambda: fcntl.ioctl(f, 0xC020660B, b'a' * 64))
t('utime', lambda: os.utime(name))
t('shared map', lambda: mmap.mmap(f, 4096)[0:4])
t('private map', lambda: mmap.mmap(f, 4096, mmap.MAP_PRIVATE)[0:4])
t('unlink', lambda: os.unlink(name))
t('rename', lambda: os.rename(name, name + 'x'))
t('O_DIRECT', lambda: os.pread(os.open(name, os.O_RDWR | os.O_DIRECT), 10, 3))
t('O_APPEND', lambda: os.write(os.open(name, os.O_WRONLY | os.O_APPEND), b'abc'))
`;
const calls: Step = { run: ['python3', '-c', systemCalls, '$DIR/m', String(SIZE)] };
const look = shell('stat -c "%F %s %b %B %o %h %i %u %g %a" m');
const mounts = shell('grep $DIR /proc/mounts');

const errors: Transcript = {
  name: 'fuse.errors',
  needs: ['fuse'],
  files: { disk: SIZE, m: 0, m2: 0, folder: 'dir/' },
  cleanup: unmountAll,
  steps: [
    disk,
    cmd('blockdev-add', { driver: 'raw', 'node-name': 'ro', file: 'f', 'read-only': true }),
    cmd('block-export-add', { type: 'fuse' }),
    cmd('block-export-add', { type: 'fuse', id: 'e', 'node-name': 'f' }),
    add({ id: '1' }),
    add({ 'node-name': 'nobody' }),
    add({ mountpoint: 5 }),
    add({ growable: 'on' }),
    add({ 'allow-other': true }),
    add({ 'allow-other': 'some' }),
    add({ name: 'x' }),
    add({ mountpoint: '' }),
    add({ mountpoint: '$DIR/missing' }),
    add({ mountpoint: '$DIR/m/missing' }),
    add({ mountpoint: '$DIR/folder' }),
    add({ mountpoint: '/dev/null' }),
    add({ 'node-name': 'ro', writable: true }),
    add({ iothread: 'nobody' }),
    list,
    add({}),
    add({}),
    add({ id: 'e2' }),
    add({ id: 'e2', mountpoint: '$DIR/m2', writable: true, writethrough: true }),
    list,
    mounts,
    { note: 'others may change the length' },
    cmd('block_resize', { 'node-name': 'f', size: MiB }),
    shell('sleep 1.1; stat -c "%s %a" m m2'),
    { note: 'a node that may not be written to cannot grow' },
    add({ id: 'e3', 'node-name': 'ro', growable: true }),
    cmd('blockdev-del', { 'node-name': 'f' }),
    del('e2'),
    del('e'),
    del('e'),
    mounts,
    list,
  ],
};

const behaviour = (name: string, options: object): Transcript => ({
  name: `fuse.${name}`,
  needs: ['fuse', 'python3'],
  files: { disk: SIZE, m: 0 },
  cleanup: unmountAll,
  steps: [
    disk,
    add(options),
    look,
    calls,
    look,
    shell(
      'truncate -s 20M m; stat -c %s m; truncate -s 8M m; stat -c %s m disk; truncate -s 16M m; stat -c %s m',
    ),
    shell('true > m; stat -c %s m disk'),
    shell('echo abc > m; head -c 4 m'),
    shell('for mode in u+w u-w u+x u-r g+r o+w 0444 0600; do chmod $mode m; stat -c %a m; done'),
    shell('chown 1 m; chgrp 2 m; stat -c "%u %g" m; chown 0:0 m; touch m'),
    shell(
      'cp m copy && cmp m copy && dd if=copy of=m bs=64k conv=notrunc status=none && cmp m disk; echo $?',
    ),
    del('e'),
    { note: 'unmounted, and nothing of it has reached the file below' },
    shell('stat -c %s m; grep $DIR /proc/mounts'),
    cmd('blockdev-del', { 'node-name': 'f' }),
  ],
});

const inUse: Transcript = {
  name: 'fuse.in-use',
  needs: ['fuse'],
  files: { disk: SIZE, m: 0 },
  cleanup: unmountAll,
  steps: [
    disk,
    add({ writable: true }),
    { note: 'whoever has it open loses it' },
    shell(
      '(exec 5<m; touch opened; while [ -e opened ]; do sleep 0.05; done; dd bs=512 count=1 <&5 of=/dev/null 2>error) >/dev/null 2>&1 &\nwhile ! [ -e opened ]; do sleep 0.05; done',
    ),
    del('e'),
    list,
    shell('rm opened; while ! grep -q closing error 2>/dev/null; do sleep 0.05; done; cat error'),
    { note: 'unmounted by somebody else: the export stays' },
    add({}),
    shell('umount m'),
    list,
    add({ id: 'e2' }),
    del('e'),
    add({}),
    shell('umount m; umount m'),
    del('e'),
    { note: 'the end takes it away' },
    add({}),
    cmd('quit'),
    { exit: true },
    mounts,
  ],
};

export const fuseTranscripts: readonly Transcript[] = [
  errors,
  behaviour('read-only', {}),
  behaviour('writable', { writable: true }),
  behaviour('growable', { writable: true, growable: true }),
  behaviour('growable-read-only', { growable: true }),
  behaviour('alone', { writable: true, growable: true, 'allow-other': 'off' }),
  behaviour('with-others', { writable: true, 'allow-other': 'on', writethrough: true }),
  inUse,
];
