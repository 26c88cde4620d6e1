/**
 * The I/O interface that exports and jobs see of a BlockBackend.
 *
 * Kept apart from the implementation (backend.ts) so that users of a backend depend on this contract alone. All
 * functions throw BlockError (with errno); offsets and lengths are bytes and are checked here.
 */

import type { IoVector } from '../../aio/memory.ts';
import type { ObservedRequest } from './short-request.ts';

export interface BackendExtent {
  readonly bytes: number;
  /** Reads as zeroes. */
  readonly zero: boolean;
  /** Holds data (takes space) in this node or its backing chain. */
  readonly allocated: boolean;
}

export interface BackendDepth {
  readonly bytes: number;
  /** 0 = unallocated everywhere, 1 = in the top layer, n = in the n-th layer. */
  readonly depth: number;
}

/** Bytes of a node as part of a file, all of them in the page cache. */
export interface LentPages {
  readonly fd: number;
  readonly fileOffset: number;
}

export interface BackendIo {
  /** Reads [offset, offset+bytes) into `vec` (vec.bytes === bytes). */
  preadv(offset: number, bytes: number, vec: IoVector, flags: number): Promise<void>;
  pwritev(offset: number, bytes: number, vec: IoVector, flags: number): Promise<void>;
  /**
   * Reads if that needs no waiting, or nothing but the disk: then short.isWaiting is set, and it ends by a plain call to the
   * owner of `short`. False: nothing has been done. Without it: now or not at all. Never throws.
   */
  tryPreadv(offset: number, bytes: number, vec: IoVector, short?: ObservedRequest | null): boolean;
  /** Writes; as tryPreadv. */
  tryPwritev(offset: number, bytes: number, vec: IoVector, short?: ObservedRequest | null): boolean;
  /**
   * The pages that hold the bytes, to be given to a socket in this turn (sendfile(2)), which keeps them instead of a copy
   * until the client has taken them: what is written to them meanwhile, the client sees. So they are lent by those only who
   * never give them to anybody else, and what has to be of one moment (a snapshot, a cluster) is not lent. Null: read them.
   */
  lendPages(offset: number, bytes: number): LentPages | null;
  /** A read has been answered with the pages that lendPages gave. */
  pagesLent(bytes: number, elapsedMs: number): void;
  pwriteZeroes(offset: number, bytes: number, flags: number): Promise<void>;
  pdiscard(offset: number, bytes: number): Promise<void>;
  flush(): Promise<void>;
  /** First extent at `offset`, at most `bytes` long. */
  blockStatus(offset: number, bytes: number): Promise<BackendExtent>;
  /** First extent of equal allocation depth. */
  allocationDepth(offset: number, bytes: number): Promise<BackendDepth>;
  /** Current length in bytes. */
  getLength(): Promise<number>;
  /** Smallest request the node below handles without read-modify-write; a power of two, at least 1. */
  readonly requestAlignmentBytes: number;
  /** Longest request that the nodes below pass on in one piece; 0: any. Longer ones are split. */
  readonly maxTransferBytes: number;
  readonly readOnly: boolean;
  /** Asking for block status costs about as much as reading: whoever reads had better not ask first. */
  readonly statusIsCostly?: boolean;
  /** FUA is honoured (natively or by a flush after the write): always true, kept for exports' advertising. */
  readonly nodeName: string;
}

/** How the holder of a backend is told to stop and go on sending requests (a drained section of its node). */
export interface BackendOwner {
  /** "export 'e0'", "block device 'd0'": names the user in permission errors. */
  describe(): string;
  /** Stop starting new requests; requests in flight go on. May be called again while drained (nests). */
  drainedBegin(): void;
  drainedEnd(): void;
  /** Null when the holder is at rest; else resolves when it is worth looking again. Default: at rest. */
  waitForRest?(): Promise<void> | null;
  /** The holder comes to rest by itself (a job, at its next pause point): until then its requests must go on. */
  readonly sendsWhileDrained?: boolean;
  /** The edge does not go along when the node is replaced. */
  readonly staysAtNode?: boolean;
  /** Default: false; see RootParent. */
  readonly allowsInactive?: boolean;
  /** The block job that uses the node; default: none. */
  readonly jobId?: string;
  /** The node's length changed. */
  resized?(): void;
}
