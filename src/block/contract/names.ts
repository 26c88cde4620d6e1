/**
 * Image names and the options that only names and tools give, as a driver knows them. Part of the contract in
 * driver.ts; who asks is image-name.ts and the tools.
 */

import type { DriverOptions } from './image.ts';

export interface NameCallbacks {
  /** Prefixes of image names that are this driver's, besides its own name. */
  readonly namePrefixes?: readonly string[];
  /**
   * Options of a node for the rest of a name "PREFIX:REST"; the prefix is the driver's name or one of the above, or
   * empty for a name of another form.
   */
  parseName?(rest: string, prefix: string): DriverOptions;
  /** Options that only names and tools give: the schema does not have them. */
  readonly nameOptions?: readonly string[];
  /** Options by older names, as only the tools take them, under the schema's names. Throws when they contradict. */
  modernOptions?(options: DriverOptions): DriverOptions;
}
