/** How images of qcow version 1 are known by their first bytes. */

export const QCOW_MAGIC = 0x514649fb;

/** 0..100: how sure it is that an image starting with `start` is one. */
export function probeQcow(start: Buffer): number {
  return start.length >= 48 && start.readUInt32BE(0) === QCOW_MAGIC && start.readUInt32BE(4) === 1 ? 100 : 0;
}
