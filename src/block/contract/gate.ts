/**
 * The gate before files that nobody but an image names: backing files, data files, extents. A function that opens one of
 * them takes this proof; only open/gate.ts hands it out, and not for images that the user does not trust.
 */

declare const passed: unique symbol;

/** A file that an untrusted image names. */
export interface RefusedOpening {
  /** "data file", "extents.0". */
  readonly what: string;
  readonly filename: string;
}

export interface ImplicitOpenGate {
  readonly [passed]: true;
}
