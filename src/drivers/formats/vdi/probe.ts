/** What a VDI image is known by. */

export const VDI_SIGNATURE = 0xbeda107f;

export function probeVdi(start: Buffer): number {
  return start.length >= 0x44 && start.readUInt32LE(0x40) === VDI_SIGNATURE ? 100 : 0;
}
