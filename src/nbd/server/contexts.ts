/**
 * Metadata contexts: which there are, what a query of a client names, and what a client has selected.
 */

import type { DirtyBitmap } from '../../block/bitmaps/dirty-bitmap.ts';
import type { OptionPayload } from '../protocol/handshake-io.ts';
import { STRING_MAX_BYTES } from '../protocol/messages.ts';
import type { NbdExport } from './export.ts';

/** Ids on the wire; a context keeps its id for all exports, bitmaps count up from the last one in their order. */
export const ContextId = { allocation: 0, depth: 1, firstBitmap: 2 } as const;

export interface MetaContext {
  readonly id: number;
  readonly name: string;
  /** The bitmap it shows; null for the others. */
  readonly bitmap: DirtyBitmap | null;
}

const ALLOCATION: MetaContext = { id: ContextId.allocation, name: 'base:allocation', bitmap: null };
const BITMAP_PREFIX = 'qemu:dirty-bitmap:';
const DEPTH: MetaContext = { id: ContextId.depth, name: 'qemu:allocation-depth', bitmap: null };

/** The contexts of an export, in the order in which they are listed and answered. */
export function contextsOf(exp: NbdExport): readonly MetaContext[] {
  const bitmaps = exp.bitmaps.map((bitmap, index) => ({
    id: ContextId.firstBitmap + index,
    name: `${BITMAP_PREFIX}${bitmap.name}`,
    bitmap,
  }));
  return [ALLOCATION, ...(exp.allocationDepth ? [DEPTH] : []), ...bitmaps];
}

/**
 * Reads the queries of LIST_META_CONTEXT (`listing`) or SET_META_CONTEXT and returns the contexts they name. A list
 * query may also be a namespace ("base:") or all bitmaps ("qemu:dirty-bitmap:"), and no query lists everything. Queries that name nothing, too
 * long ones included, are passed over, as the protocol asks.
 */
export async function readQueries(
  payload: OptionPayload,
  exp: NbdExport,
  listing: boolean,
): Promise<readonly MetaContext[]> {
  const all = contextsOf(exp);
  const count = await payload.u32();
  if (count === 0) return listing ? all : [];
  const named = new Set<MetaContext>();
  for (let i = 0; i < count; i++) {
    const bytes = await payload.u32();
    if (bytes > STRING_MAX_BYTES) {
      await payload.skip(bytes);
      continue;
    }
    const query = await payload.string(bytes);
    const exact = all.find((context) => context.name === query);
    if (exact !== undefined) named.add(exact);
    for (const context of all) {
      if (listing && query === context.name.slice(0, context.name.indexOf(':') + 1)) named.add(context);
      if (listing && query === BITMAP_PREFIX && context.bitmap !== null) named.add(context);
    }
  }
  return all.filter((context) => named.has(context));
}
