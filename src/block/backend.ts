/**
 * BlockBackend: what an export, a job or a resize holds of a node.
 *
 * It owns the root edge with its permissions, counts its requests, and holds new ones back while its node is
 * drained. Its I/O functions take the graph read lock for the time of a request.
 */

import type { IoVector } from '../aio/memory.ts';
import { CoQueue } from '../coroutine/co-queue.ts';
import { E } from '../errors/errno.ts';
import { assert, ioError } from '../errors/error.ts';
import type {
  BackendDepth,
  BackendExtent,
  BackendIo,
  BackendOwner,
  LentPages,
} from './contract/backend-io.ts';
import type { GraphReadGuard } from './contract/guard.ts';
import type { PreallocMode } from './contract/image.ts';
import { Req, Status } from './contract/request.ts';
import { asHolder, asMonitor, debuggingGraph } from './graph/debug.ts';
import { hurry } from './graph/drain.ts';
import { adviseMaxTransfer, type BlockChild, type BlockNode, type RootParent } from './graph/node.ts';
import { co, sync } from './io/callbacks.ts';
import type { ShortHolder, ShortIo } from './io/short-io.ts';
import { blockStatusAbove, type ChainStatus } from './io/status-chain.ts';

export class BlockBackend implements BackendIo, RootParent, ShortHolder {
  readonly #owner: BackendOwner;
  readonly #detach: (backend: BlockBackend) => Promise<void>;
  readonly #resumed = new CoQueue();
  readonly #idle = new CoQueue();
  /** The root edge; null after close. */
  #root: BlockChild | null = null;
  #drainDepth = 0;
  #closing = false;
  /** Requests begun and not ended, those that wait for the end of a drained section included. */
  #pending = 0;

  /** `detach` removes the root edge from the graph; the layer supplies it. */
  constructor(owner: BackendOwner, detach: (backend: BlockBackend) => Promise<void>) {
    this.#owner = owner;
    this.#detach = detach;
  }

  /** Called once by the layer when the root edge is in place. */
  attach(root: BlockChild): void {
    this.#root = root;
  }

  get root(): BlockChild {
    assert(this.#root !== null, 'backend used after close');
    return this.#root;
  }

  get node(): BlockNode {
    return this.root.node;
  }

  /** Requests begun and not ended; those that are done within the turn never show here. */
  get inFlight(): number {
    return this.#pending;
  }

  get pending(): number {
    return this.#pending;
  }

  get nodeName(): string {
    return this.node.name;
  }

  get readOnly(): boolean {
    return this.node.readOnly;
  }

  /** Looks through nodes that pass the question on to their only child. Within one turn nobody changes the graph. */
  get statusIsCostly(): boolean {
    return asMonitor(() => isStatusCostly(this.root.node));
  }

  get requestAlignmentBytes(): number {
    return this.node.limits.requestAlignment;
  }

  get maxTransferBytes(): number {
    // A look within one turn, in which nobody changes the graph.
    return asMonitor(() => adviseMaxTransfer(this.node));
  }

  describe(): string {
    return this.#owner.describe();
  }

  drainedBegin(): void {
    this.#drainDepth++;
    this.#owner.drainedBegin();
  }

  drainedEnd(): void {
    assert(this.#drainDepth > 0, 'drained section ended twice');
    this.#drainDepth--;
    this.#owner.drainedEnd();
    if (this.#drainDepth === 0) this.#resumed.wakeAll();
  }

  waitForRest(): Promise<void> | null {
    return this.#owner.waitForRest?.() ?? null;
  }

  get jobId(): string | null {
    return this.#owner.jobId ?? null;
  }

  get allowsInactive(): boolean {
    return this.#owner.allowsInactive === true;
  }

  get staysAtNode(): boolean {
    return this.#owner.staysAtNode === true;
  }

  resized(): void {
    this.#owner.resized?.();
  }

  // Written out per operation: a closure per request would show in the profile. The node is looked at when the lock
  // is held: a graph change may have put another one there meanwhile.

  async preadv(offset: number, bytes: number, vec: IoVector, flags: number): Promise<void> {
    const guard = this.#tryEnter() ?? (await this.#enter());
    try {
      await co.preadv(this.#checked(offset, bytes), guard, offset, bytes, vec, flags);
    } finally {
      this.#leave(guard);
    }
  }

  async pwritev(offset: number, bytes: number, vec: IoVector, flags: number): Promise<void> {
    const guard = this.#tryEnter() ?? (await this.#enter());
    try {
      await co.pwritev(this.#checked(offset, bytes), guard, offset, bytes, vec, flags);
    } finally {
      this.#leave(guard);
    }
  }

  tryPreadv(offset: number, bytes: number, vec: IoVector, short: ShortIo | null = null): boolean {
    return this.#try(sync.tryPreadv, offset, bytes, vec, short);
  }

  tryPwritev(offset: number, bytes: number, vec: IoVector, short: ShortIo | null = null): boolean {
    return this.#try(sync.tryPwritev, offset, bytes, vec, short);
  }

  lendPages(offset: number, bytes: number): LentPages | null {
    const root = this.#root;
    if (root === null || this.#held) return null;
    const { node } = root;
    if (!(offset >= 0 && bytes > 0 && offset + bytes <= node.totalBytes)) return null;
    const { graphLock } = node.layer;
    const guard = graphLock.tryRead();
    if (guard === null) return null;
    try {
      return sync.lendPages(node, guard, offset, bytes);
    } finally {
      graphLock.readDone(guard);
    }
  }

  /** Nobody counts here. */
  pagesLent(): void {}

  /** Writes whole clusters compressed; bytes 0: the image is complete. */
  pwritevCompressed(offset: number, bytes: number, vec: IoVector): Promise<void> {
    return this.#run((guard) =>
      co.pwritevCompressed(this.#checked(offset, bytes), guard, offset, bytes, vec),
    );
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Promise<void> {
    return this.#run((guard) => co.pwriteZeroes(this.#checked(offset, bytes), guard, offset, bytes, flags));
  }

  pdiscard(offset: number, bytes: number): Promise<void> {
    return this.#run((guard) => co.pdiscard(this.#checked(offset, bytes), guard, offset, bytes));
  }

  flush(): Promise<void> {
    return this.#run((guard) => co.flush(this.node, guard));
  }

  async blockStatus(offset: number, bytes: number): Promise<BackendExtent> {
    const status = await this.chainStatus(offset, bytes, null);
    return {
      bytes: status.bytes,
      zero: (status.flags & Status.zero) !== 0,
      allocated: (status.flags & Status.data) !== 0,
    };
  }

  async allocationDepth(offset: number, bytes: number): Promise<BackendDepth> {
    const status = await this.#run((guard) =>
      blockStatusAbove(this.#checked(offset, bytes), guard, null, false, offset, bytes),
    );
    const isAllocated = (status.flags & Status.allocated) !== 0;
    return { bytes: status.bytes, depth: isAllocated ? status.depth + 1 : 0 };
  }

  /** Status through the backing chain down to `base`, which is left out; see blockStatusAbove. */
  chainStatus(offset: number, bytes: number, base: BlockNode | null): Promise<ChainStatus> {
    return this.#run((guard) =>
      blockStatusAbove(this.#checked(offset, bytes), guard, base, true, offset, bytes),
    );
  }

  async getLength(): Promise<number> {
    return this.node.totalBytes;
  }

  /** Sets the length of the node; see coTruncate. `zeroFill`: what is new reads as zeroes, whatever is below. */
  truncate(length: number, exact: boolean, prealloc: PreallocMode, zeroFill = false): Promise<void> {
    return this.#run((guard) => co.truncate(this.node, guard, length, exact, prealloc, zeroFill));
  }

  /** Waits for its requests, then gives up the node. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    if (this.#pending > 0) await this.#settle();
    await this.#detach(this);
    this.#root = null;
  }

  async #settle(): Promise<void> {
    const relax = hurry(this.node);
    while (this.#pending > 0) await this.#idle.wait();
    relax();
  }

  #try(
    operation: typeof sync.tryPreadv,
    offset: number,
    bytes: number,
    vec: IoVector,
    short: ShortIo | null,
  ): boolean {
    const root = this.#root;
    if (root === null || this.#held) return false;
    const { node } = root;
    if (!(offset >= 0 && bytes >= 0 && offset + bytes <= node.totalBytes)) return false;
    const { graphLock } = node.layer;
    const guard = graphLock.tryRead();
    if (guard === null) return false;
    let isWaiting = false;
    try {
      const isBegun = operation(node, guard, offset, bytes, vec, short);
      if (isBegun && short?.isWaiting) {
        isWaiting = true;
        this.#pending++;
        short.hold(this, guard);
      }
      return isBegun;
    } finally {
      if (!isWaiting) graphLock.readDone(guard);
    }
  }

  /** A request that had waited for the disk has ended; for ShortIo. */
  shortDone(guard: GraphReadGuard): void {
    this.#leave(guard);
  }

  #checked(offset: number, bytes: number): BlockNode {
    const { node } = this.root;
    if (!(offset >= 0 && bytes >= 0 && offset + bytes <= node.totalBytes)) throw ioError(E.EIO);
    return node;
  }

  /** Whether requests have to wait for the end of a drained section. */
  get #held(): boolean {
    return this.#drainDepth > 0 && this.#owner.sendsWhileDrained !== true;
  }

  /** Counts the request in and takes the graph read lock, if neither needs waiting. */
  #tryEnter(): GraphReadGuard | null {
    if (this.#held) return null;
    const guard = this.root.node.layer.graphLock.tryRead();
    if (guard !== null) this.#pending++;
    return guard;
  }

  async #enter(): Promise<GraphReadGuard> {
    const { graphLock } = this.root.node.layer;
    this.#pending++;
    for (;;) {
      while (this.#held) await this.#resumed.wait();
      const guard = graphLock.tryRead() ?? (await graphLock.read());
      // A drained section that began while this request waited for the lock counts on it to stay out.
      if (!this.#held) return guard;
      graphLock.readDone(guard);
    }
  }

  #leave(guard: GraphReadGuard): void {
    this.root.node.layer.graphLock.readDone(guard);
    this.#pending--;
    if (this.#pending === 0) this.#idle.wakeAll();
  }

  async #run<T>(operation: (guard: GraphReadGuard) => Promise<T>): Promise<T> {
    const guard = this.#tryEnter() ?? (await this.#enter());
    try {
      return await (debuggingGraph ? asHolder(guard, () => operation(guard)) : operation(guard));
    } finally {
      this.#leave(guard);
    }
  }
}

type Request = (...args: never[]) => Promise<void>;

/** The requests of backends that `observeBackends` can look at. */
const OBSERVED = ['preadv', 'pwritev', 'pwriteZeroes', 'pdiscard', 'flush'] as const;
export type BackendRequest = (typeof OBSERVED)[number];

/** Puts `around` about every request of every backend from now on; as observeForms. The waits before a request are inside. */
export function observeBackends(
  around: (
    name: BackendRequest,
    backend: BlockBackend,
    args: readonly unknown[],
    run: () => Promise<void>,
  ) => Promise<void>,
): void {
  const table = BlockBackend.prototype as unknown as Record<BackendRequest, Request>;
  for (const name of OBSERVED) {
    const request = table[name];
    table[name] = function (this: BlockBackend, ...args: never[]) {
      return around(name, this, args, () => request.apply(this, args));
    };
  }
}

/** Flags an export passes for a write that must be on stable storage when it is answered. */
export const WRITE_THROUGH = Req.fua;

function isStatusCostly(node: BlockNode): boolean {
  const { children, driver } = node;
  if (driver.costlyStatus === true) return true;
  const passesOn = children.length === 1 && (driver.kind === 'filter' || driver.name === 'raw');
  return passesOn && isStatusCostly(children[0]!.node);
}
