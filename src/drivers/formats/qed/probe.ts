/** How qed images are known by their first bytes. */

export const QED_MAGIC = 0x00444551;

/** 0..100: how sure it is that an image starting with `start` is one. */
export function probeQed(start: Buffer): number {
  return start.length >= 64 && start.readUInt32LE(0) === QED_MAGIC ? 100 : 0;
}
