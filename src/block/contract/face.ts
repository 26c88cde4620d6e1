/**
 * A driver's face: what is known of it before anything of its kind is opened. Part of the contract in driver.ts.
 *
 * Naming, probing and the schema go by faces alone; opening and making images load the driver behind one. A whole
 * driver is a face too. A test compares every face of the table with its driver.
 */

import type { BlockDriver } from './driver.ts';
import type { NameCallbacks } from './names.ts';

/** Members of a driver that its face must have, where the driver has them. */
export const FACE_MEMBERS = [
  'name',
  'kind',
  'isProtocolFilter',
  'supportsBacking',
  'probe',
  'namePrefixes',
  'parseName',
  'nameOptions',
  'modernOptions',
] as const satisfies readonly (keyof BlockDriver)[];

export interface DriverFace extends NameCallbacks {
  readonly name: string;
  readonly kind: BlockDriver['kind'];
  readonly isProtocolFilter?: boolean;
  readonly supportsBacking?: boolean;
  /** 0..100, as of BlockDriver. */
  probe?(start: Buffer, filename?: string): number;
}

/** A face whose driver is a module of its own, loaded at its first use. */
export interface LazyDriver extends DriverFace {
  load(): Promise<BlockDriver>;
}

/** The driver behind a face. */
export function driverBehind(face: BlockDriver | LazyDriver): BlockDriver | Promise<BlockDriver> {
  return 'load' in face ? face.load() : face;
}
