/** How images of Parallels are known by their first bytes. */

export const MAGIC_SECTORS = 'WithoutFreeSpace';
export const MAGIC_CLUSTERS = 'WithouFreSpacExt';

/** 0..100: how sure it is that an image starting with `start` is one. */
export function probeParallels(start: Buffer): number {
  if (start.length < 64) return 0;
  const magic = start.toString('latin1', 0, 16);
  return (magic === MAGIC_SECTORS || magic === MAGIC_CLUSTERS) && start.readUInt32LE(16) === 2 ? 100 : 0;
}
