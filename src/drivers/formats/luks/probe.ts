/** How luks images are known by their first bytes. */

const MAGIC = Buffer.from('LUKS\xba\xbe', 'latin1');

/** 0..100: how sure it is that an image starting with `start` is one. */
export function probeLuks(start: Buffer): number {
  if (start.length < 8 || !start.subarray(0, MAGIC.length).equals(MAGIC)) return 0;
  const version = start.readUInt16BE(6);
  return version === 1 || version === 2 ? 100 : 0;
}
