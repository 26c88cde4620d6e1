/** What a VHDX image is known by. */

export const VHDX_SIGNATURE = 'vhdxfile';

export function probeVhdx(start: Buffer): number {
  return start.length >= 8 && start.toString('latin1', 0, 8) === VHDX_SIGNATURE ? 100 : 0;
}
