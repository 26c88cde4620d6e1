/**
 * A small Linux for tests: Debian's kernel with a root file system in memory, made of busybox, a few programs and the
 * modules of virtio disks. Its init prints READY on the serial port, then carries out the lines it reads there.
 */

import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs';
import path from 'node:path';
import { gzipSync } from 'node:zlib';

/** Modules in the order in which they are loaded. */
const MODULES = [
  'virtio/virtio_ring',
  'virtio/virtio',
  'virtio/virtio_pci_legacy_dev',
  'virtio/virtio_pci_modern_dev',
  'virtio/virtio_pci',
  'block/virtio_blk',
];
/** Programs with their libraries, as far as they are installed. */
const PROGRAMS = ['/sbin/mke2fs', '/sbin/e2fsck', '/sbin/fstrim'];

const INIT = `#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for m in ${MODULES.map((name) => path.basename(name)).join(' ')}; do insmod /modules/$m.ko; done
stty -F /dev/ttyS0 -echo -onlcr; mkdir -p /mnt /tmp
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
echo; echo READY
while read -r line; do eval "$line"; status=$?; echo; echo "STATUS $status"; done
`;

/** The newest of Debian's kernels that has virtio disks as modules; null where there is none. */
export function findKernel(): { readonly kernel: string; readonly modules: string } | null {
  const names = existsSync('/boot') ? readdirSync('/boot') : [];
  for (const name of names
    .filter((one) => one.startsWith('vmlinuz-'))
    .sort()
    .reverse()) {
    const modules = `/lib/modules/${name.slice('vmlinuz-'.length)}/kernel/drivers`;
    if (existsSync(`${modules}/block/virtio_blk.ko`)) return { kernel: `/boot/${name}`, modules };
  }
  return null;
}

interface Entry {
  readonly name: string;
  readonly mode: number;
  readonly content: Buffer;
}

/** A "newc" archive of cpio. Source of the facts: Linux Documentation, "initramfs buffer format". */
function archive(entries: readonly Entry[]): Buffer {
  const parts: Buffer[] = [];
  const pad = (length: number): Buffer => Buffer.alloc((4 - (length % 4)) % 4);
  const add = ({ name, mode, content }: Entry, inode: number): void => {
    const fields = [inode, mode, 0, 0, 1, 0, content.length, 0, 0, 0, 0, name.length + 1, 0];
    const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}${name}\0`;
    parts.push(Buffer.from(header), pad(header.length), content, pad(content.length));
  };
  for (const [index, entry] of entries.entries()) add(entry, index + 1);
  add({ name: 'TRAILER!!!', mode: 0, content: Buffer.alloc(0) }, 0);
  return Buffer.concat(parts);
}

/** Files a program needs besides itself. */
function librariesOf(program: string): string[] {
  const text = execFileSync('ldd', [program], { encoding: 'utf8' });
  return [...text.matchAll(/(\/\S+) \(0x/g)].map((match) => match[1] as string);
}

/** The root file system, compressed. */
export function makeInitramfs(modules: string): Buffer {
  const files = new Map<string, Entry>();
  const addFile = (name: string, from: string): void => {
    const content = readFileSync(realpathSync(from));
    files.set(name, { name, mode: 0o100755, content });
  };
  addFile('bin/busybox', '/bin/busybox');
  files.set('bin/sh', { name: 'bin/sh', mode: 0o120777, content: Buffer.from('busybox') });
  for (const name of MODULES) addFile(`modules/${path.basename(name)}.ko`, `${modules}/${name}.ko`);
  for (const program of PROGRAMS.filter((one) => existsSync(one))) {
    addFile(`sbin/${path.basename(program)}`, program);
    for (const library of librariesOf(program)) addFile(library.slice(1), library);
  }
  files.set('init', { name: 'init', mode: 0o100755, content: Buffer.from(INIT) });
  const folders = new Set(['proc', 'sys', 'dev']);
  for (const name of files.keys())
    for (let at = path.dirname(name); at !== '.'; at = path.dirname(at)) folders.add(at);
  const folderEntries = [...folders]
    .sort()
    .map((name) => ({ name, mode: 0o040755, content: Buffer.alloc(0) }));
  const console = { name: 'dev/console', mode: 0o100600, content: Buffer.alloc(0) };
  return gzipSync(archive([...folderEntries, console, ...files.values()]), { level: 1 });
}
