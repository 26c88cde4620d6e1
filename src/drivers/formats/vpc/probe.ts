/** What a VHD image is known by: the copy of its footer that a dynamic one begins with. Fixed ones have none. */

export const FOOTER_COOKIE = 'conectix';

export function probeVpc(start: Buffer): number {
  return start.length >= 8 && start.toString('latin1', 0, 8) === FOOTER_COOKIE ? 100 : 0;
}
