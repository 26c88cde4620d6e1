/** The options of an opening, and the checks of those against the image's header. */

import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { type CacheSizes, cacheSizes, cleanIntervalSeconds } from './cache-sizes.ts';
import { type Header, hasLazyRefcounts } from './header.ts';
import { Crypt, Incompat } from './layout.ts';

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

export interface CheckedOptions {
  readonly sizes: CacheSizes;
  /** Seconds after which unused tables are dropped; 0: never. */
  readonly cleanIntervalSeconds: number;
  readonly lazyRefcounts: boolean;
}

function invalid(message: string): BlockError {
  return new BlockError(message, { errno: E.EINVAL });
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
