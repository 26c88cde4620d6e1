/** How a qcow2 image begins: all that probing needs. Beyond: header.ts. */

/** "QFI" and 0xfb, big-endian. */
export const QCOW_MAGIC = 0x514649fb;

/** Whether `start` begins with the magic number and a version this driver reads. */
export function isQcow2(start: Buffer): boolean {
  return start.length >= 8 && start.readUInt32BE(0) === QCOW_MAGIC && start.readUInt32BE(4) >= 2;
}
