/** Mappings of files for mincore(2) to tell which pages are in memory: nobody ever touches them. */

import koffi from 'koffi';
import { addressOf } from '../ffi.ts';

const libc = koffi.load('libc.so.6');
const cMapRead = libc.func('mmap', 'uintptr_t', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'long']);
const cUnmap = libc.func('munmap', 'int', ['uintptr_t', 'size_t']);
const cMincore = libc.func('mincore', 'int', ['uintptr_t', 'size_t', 'uintptr_t']);
const PAGE_BYTES = 4096;
/** One byte a page, enough for 32 MiB. */
const residence = Buffer.allocUnsafeSlow(8192 + 1);
const residenceAddr = addressOf(residence);

/** Maps `bytes` of `fd` at `offset` (whole pages): the address; null: refused. */
export function mapUntouched(fd: number, bytes: number, offset: number): number | null {
  const PROT_READ = 1;
  const MAP_SHARED = 1;
  const addr = Number(cMapRead(0, bytes, PROT_READ, MAP_SHARED, fd, offset));
  return addr >= 2 ** 63 ? null : addr;
}

export function unmapAt(addr: number, bytes: number): void {
  cUnmap(addr, bytes);
}

/** Whether all pages of the mapped bytes are in memory (mincore(2)). */
export function isResident(addr: number, bytes: number): boolean {
  const from = addr - (addr % PAGE_BYTES);
  const pages = Math.ceil((addr + bytes - from) / PAGE_BYTES);
  if (pages > residence.length || cMincore(from, pages * PAGE_BYTES, residenceAddr) !== 0) return false;
  for (let i = 0; i < pages; i++) if ((residence[i]! & 1) === 0) return false;
  return true;
}
