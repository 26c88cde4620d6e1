/** The options of an opening, and the checks of those against the image's header. */

import type { LeftOut } from '../../../../block/contract/reopen.ts';
import { E } from '../../../../errors/errno.ts';
import { BlockError } from '../../../../errors/error.ts';
import { type Header, hasLazyRefcounts } from '../layout/header.ts';
import { Crypt, Incompat } from '../layout/layout.ts';
import { overlapChecks } from '../layout/overlap.ts';
import type { Qcow2State } from '../layout/state.ts';
import { type CacheSizes, cacheSizes, cleanIntervalSeconds } from './cache-sizes.ts';

export interface Qcow2Options {
  readonly 'lazy-refcounts'?: boolean;
  readonly 'pass-discard-request'?: boolean;
  readonly 'pass-discard-snapshot'?: boolean;
  readonly 'pass-discard-other'?: boolean;
  readonly 'discard-no-unref'?: boolean;
  readonly 'overlap-check'?: string | Readonly<Record<string, boolean>>;
  readonly 'cache-size'?: number;
  readonly 'l2-cache-size'?: number;
  readonly 'l2-cache-entry-size'?: number;
  readonly 'refcount-cache-size'?: number;
  readonly 'cache-clean-interval'?: number;
  readonly encrypt?: { readonly format?: 'aes' | 'luks'; readonly 'key-secret'?: string };
  readonly 'data-file'?: unknown;
}

/** What can change while an image is in use. */
export const MUTABLE_OPTIONS: Readonly<Record<string, LeftOut>> = {
  'lazy-refcounts': 'resets',
  'pass-discard-request': 'resets',
  'pass-discard-snapshot': 'resets',
  'pass-discard-other': 'resets',
  'discard-no-unref': 'resets',
  'overlap-check': 'resets',
  'cache-size': 'resets',
  'l2-cache-size': 'resets',
  'l2-cache-entry-size': 'resets',
  'refcount-cache-size': 'resets',
  'cache-clean-interval': 'resets',
  encrypt: 'refused',
};

export interface CheckedOptions {
  readonly sizes: CacheSizes;
  /** Seconds after which unused tables are dropped; 0: never. */
  readonly cleanIntervalSeconds: number;
  readonly lazyRefcounts: boolean;
}

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
}

/** What the options switch on and off, with their defaults. `discardUnmap`: discards are passed on by the node itself. */
export function switches(
  options: Qcow2Options,
  discardUnmap: boolean,
): Pick<Qcow2State, 'passDiscard' | 'discardNoUnref' | 'overlap'> {
  return {
    passDiscard: {
      never: false,
      always: true,
      request: options['pass-discard-request'] ?? discardUnmap,
      snapshot: options['pass-discard-snapshot'] ?? true,
      other: options['pass-discard-other'] ?? false,
    },
    discardNoUnref: options['discard-no-unref'] ?? false,
    overlap: overlapChecks(options['overlap-check']),
  };
}

/** Throws as the original does, and in its order, on options that do not fit the image. */
export function checkOptions(options: Qcow2Options, header: Header): CheckedOptions {
  const l2EntryBytes = (header.incompatible & Incompat.extendedL2) !== 0 ? 16 : 8;
  const checked = {
    sizes: cacheSizes(options, header.size, 2 ** header.clusterBits, l2EntryBytes),
    cleanIntervalSeconds: cleanIntervalSeconds(options),
    lazyRefcounts: lazyRefcounts(options, header),
  };
  checkEncryption(options, header);
  return checked;
}

function lazyRefcounts(options: Qcow2Options, header: Header): boolean {
  const lazy = options['lazy-refcounts'] ?? hasLazyRefcounts(header);
  if (lazy && header.version < 3) {
    throw invalid('Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level');
  }
  return lazy;
}

function checkEncryption({ encrypt }: Qcow2Options, { cryptMethod }: Header): void {
  // The original prints the number as signed.
  if (cryptMethod > Crypt.luks) throw invalid(`Unsupported encryption method ${cryptMethod | 0}`);
  if (encrypt === undefined) return;
  if (cryptMethod === Crypt.none)
    throw invalid(`No encryption in image header, but options specified format '${encrypt.format}'`);
  const format = cryptMethod === Crypt.luks ? 'luks' : 'aes';
  // Only the tools may leave the format out.
  if (encrypt.format !== undefined && encrypt.format !== format) {
    throw invalid(`Header reported '${format}' encryption format but options specify '${encrypt.format}'`);
  }
}
