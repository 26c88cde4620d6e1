/** What a VMDK image is known by: the magic of an extent that begins with one, or the first line of a descriptor. */

export const SPARSE_MAGIC = 'KDMV';
export const COWD_MAGIC = 'COWD';
/** Magic and version 2.1 of an SEsparse extent, little-endian numbers of 64 bits. */
const SE_START = Buffer.from('bebafeca000000000100000002000000', 'hex');

/** Whether an extent of this kind begins here. */
export function isSeSparse(start: Buffer): boolean {
  return start.subarray(0, SE_START.length).equals(SE_START);
}

export function probeVmdk(start: Buffer): number {
  const magic = start.toString('latin1', 0, 4);
  if (magic === SPARSE_MAGIC || magic === COWD_MAGIC || isSeSparse(start)) return 100;
  // Comments and blank lines may come before the version.
  for (const line of start.toString('latin1').split(/\r?\n/)) {
    if (line.startsWith('#') || /^ *$/.test(line)) continue;
    return /^version=[123]$/.test(line.trim()) ? 100 : 0;
  }
  return 0;
}
