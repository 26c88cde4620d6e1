/**
 * Memory shared with other processes: anonymous files (memfd) and mappings of their descriptors.
 *
 * A mapping is reached through windows: a view of all of it could be larger than a Buffer may be. Whoever looks through
 * one must not do so after unmap(): the process would end. What others shorten below a mapping would end it too, so
 * lengths are checked, and sealed where the kernel can.
 */

import { fstatSync } from 'node:fs';
import koffi from 'koffi';
import { closeFd } from './ffi.ts';
import type { IoMemory } from './memory.ts';

const libc = koffi.load('libc.so.6');
const cMmap = libc.func('mmap', 'void*', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'int64']);
const cMunmap = libc.func('munmap', 'int', ['void*', 'size_t']);
const cMemfd = libc.func('memfd_create', 'int', ['str', 'uint']);
const cFtruncate = libc.func('ftruncate64', 'int', ['int', 'int64']);
const cFcntl = libc.func('fcntl', 'int', ['int', 'int', '...']);

const PAGE_BYTES = 4096;
/** Windows are this long; the last one of a mapping is shorter. */
export const WINDOW_BYTES = 2 ** 30;

const F_ADD_SEALS = 1033;
const F_SEAL_SHRINK = 2;

/** A mapping of `bytes` bytes. */
export interface SharedMemory {
  readonly bytes: number;
  /** Window number n holds the bytes from n * WINDOW_BYTES on. */
  window(index: number): IoMemory;
  unmap(): void;
}

/** A new file in memory of `bytes` zero bytes; its descriptor, or -errno. */
export function createMemoryFile(name: string, bytes: number): number {
  const MFD_CLOEXEC = 1;
  const MFD_ALLOW_SEALING = 2;
  const fd = Number(cMemfd(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd < 0) return -koffi.errno();
  if (Number(cFtruncate(fd, bytes)) < 0) {
    const errno = koffi.errno();
    closeFd(fd);
    return -errno;
  }
  return fd;
}

/** Maps `bytes` of `fd` from `offset` on, shared and writable; null when the file is too short or the kernel refuses. */
export function mapSharedMemory(fd: number, offset: number, bytes: number): SharedMemory | null {
  const skip = offset % PAGE_BYTES;
  let fileBytes: number;
  try {
    fileBytes = fstatSync(fd).size;
  } catch {
    return null;
  }
  if (bytes <= 0 || offset < 0 || offset + bytes > fileBytes) return null;
  // Nobody can cut it off below the mapping then. Files that are no memfd cannot be sealed.
  cFcntl(fd, F_ADD_SEALS, 'int', F_SEAL_SHRINK);
  const PROT_READ_WRITE = 3;
  const MAP_SHARED_NORESERVE = 1 | 0x4000;
  const length = bytes + skip;
  const pointer: unknown = cMmap(0, length, PROT_READ_WRITE, MAP_SHARED_NORESERVE, fd, offset - skip);
  const base = Number(koffi.address(pointer));
  if (base >= 2 ** 63) return null;
  const windows: (IoMemory | undefined)[] = [];
  return {
    bytes,
    window(index) {
      const known = windows[index];
      if (known !== undefined) return known;
      const from = skip + index * WINDOW_BYTES;
      const size = Math.min(WINDOW_BYTES, length - from);
      const store = koffi.view(BigInt(base + from), size) as ArrayBuffer;
      const made = { buf: Buffer.from(store), addr: base + from };
      windows[index] = made;
      return made;
    },
    unmap() {
      windows.length = 0;
      cMunmap(pointer, length);
    },
  };
}
