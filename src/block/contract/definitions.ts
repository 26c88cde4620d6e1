/**
 * How definitions of nodes in text are read: json: names, and options that leave out what names and images tell. The
 * floors above know the schema and the JSON of QMP, and give this to the layer.
 */

import type { BlockLayer } from '../layer.ts';
import type { DriverOptions } from './image.ts';

export interface DefinitionReader {
  /** The value of a JSON text. Throws an error whose message says what is wrong with it. */
  parseJson(text: string): unknown;
  /**
   * The options with all that they leave out: drivers that follow from names or content, values by their types.
   * `settings` are those of whoever opens the node. Throws BlockError.
   */
  complete(layer: BlockLayer, options: DriverOptions, settings: DriverOptions): Promise<DriverOptions>;
}

/** For layers whose names are plain paths, and definitions complete. */
export const PLAIN_DEFINITIONS: DefinitionReader = {
  parseJson(text) {
    try {
      return JSON.parse(text) as unknown;
    } catch {
      throw new Error('JSON parse error');
    }
  },
  complete: (_layer, options) => Promise.resolve(options),
};
