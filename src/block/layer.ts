/**
 * BlockLayer: one block graph with everything that belongs to it.
 *
 * It owns the node table, the graph lock, the engine and the event sink. Functions here are the monitor side: they
 * look up nodes, put edges in and take them out. Opening nodes from options is open.ts.
 */

import { type Clock, systemClock } from '../aio/clock.ts';
import { createEngine } from '../aio/create-engine.ts';
import type { AioEngine, EngineKind } from '../aio/engine.ts';
import { assert, BlockError } from '../errors/error.ts';
import type { ThrottleGroup } from '../objects/throttle-group.ts';
import type { TlsCredentials } from '../objects/tls-creds.ts';
import { BlockBackend } from './backend.ts';
import type { BackendOwner } from './contract/backend-io.ts';
import { type DefinitionReader, PLAIN_DEFINITIONS } from './contract/definitions.ts';
import type { BlockDriver } from './contract/driver.ts';
import { driverBehind, type LazyDriver } from './contract/face.ts';
import type { RefusedOpening } from './contract/gate.ts';
import { Perm, type PermissionPair } from './contract/request.ts';
import type { EventSink } from './events.ts';
import { changeGraph } from './graph/change.ts';
import { drained } from './graph/drain.ts';
import { GraphLock } from './graph/lock.ts';
import type { BlockChild, BlockNode, EdgeParent } from './graph/node.ts';
import { checkOperation } from './graph/op-blockers.ts';
import { wrapped } from './io/callbacks.ts';
import { createThrottle, type Throttle } from './throttle/throttle-group.ts';

export type UseThrottleGroup = (
  id: string,
) => { readonly group: ThrottleGroup; readonly release: () => void } | null;

export interface BlockLayerParts {
  readonly engine: AioEngine;
  readonly events: EventSink;
  /** Every driver that can be opened, by name. */
  readonly drivers: Readonly<Record<string, BlockDriver | LazyDriver>>;
  /** The bytes of the secret object `id`; throws when there is none. Default: there are no secrets. */
  readonly secret?: (id: string) => Buffer;
  /** The TLS credentials object `id` for a client; throws when there is none. Default: there are none. */
  readonly tlsCreds?: (id: string) => TlsCredentials;
  /** Throws when `id` is no persistent reservation manager. Default: there are none. */
  readonly checkPrManager?: (id: string) => void;
  /** The throttle group `id`, kept from being deleted until `release`; null when there is none. */
  readonly useThrottleGroup?: UseThrottleGroup;
  /** Reads definitions in text. Default: JSON by the letter, and complete. */
  readonly definitions?: DefinitionReader;
  /** What throttling goes by. Default: the system's clock. */
  readonly clock?: Clock;
  /** Tells the user what no command can answer with; see BlockLayer.report. Default: on stderr. */
  readonly report?: (text: string) => void;
  /** As `report`, for lines that stand alone: nothing goes in front of them. Default: `report`. */
  readonly note?: (text: string) => void;
  /** Takes what belongs to a tool's own output: breakpoints met. Default: `report`. */
  readonly print?: (text: string) => void;
  /** Takes what the original writes to standard output beside all protocols. Default: nowhere. */
  readonly tell?: (text: string) => void;
  /** Ends the process with the text as its last words. Default: on stderr, with status 1. */
  readonly fatal?: (text: string) => never;
}

/** What `BlockLayer.slowWriteMs` is where others wait for their turn. */
export const SLOW_WRITE_MS = 8;

export class BlockLayer {
  readonly engine: AioEngine;
  readonly events: EventSink;
  /** By name; what is not known before loading is asked of `driver`. */
  readonly drivers: Readonly<Record<string, BlockDriver | LazyDriver>>;
  /** The bytes of the secret object `id`; throws when there is none. */
  readonly secret: (id: string) => Buffer;
  /** The TLS credentials object `id` for a client; throws when there is none. */
  readonly tlsCreds: (id: string) => TlsCredentials;
  /** Throws when `id` is no persistent reservation manager. */
  readonly checkPrManager: (id: string) => void;
  /** The throttle group `id`, kept from being deleted until `release`; null when there is none. */
  readonly useThrottleGroup: UseThrottleGroup;
  readonly definitions: DefinitionReader;
  readonly clock: Clock;
  /** Groups at work, from their first member on. */
  readonly #throttles = new WeakMap<ThrottleGroup, Throttle>();
  /** Descriptors that the process inherited may be named: true while the command line is carried out. */
  allowInheritedFd = false;
  /**
   * Where files are recorded that untrusted images name and may not open; null: an image that needs one does not open.
   * Where it is recorded, something empty stands for the file.
   */
  refusals: RefusedOpening[] | null = null;
  /** Nobody else waits: a call may take its time for a better error. True in tools and while the command line is carried out. */
  mayWaitInCalls = false;
  /** A write to a file within the turn that takes longer, in ms, sends the next ones another way; for files opened from now on. */
  slowWriteMs = SLOW_WRITE_MS;
  /** Tells the user what no command can answer with; "warning: " goes in front of what is no error. Adds no line end. */
  readonly report: (text: string) => void;
  /** Tells the user a line of a longer story, such as a repair. */
  readonly note: (text: string) => void;
  /** Adds to a tool's own output. */
  readonly print: (text: string) => void;
  readonly tell: (text: string) => void;
  /** Ends the process with the text as its last words: for drivers whose job that is. */
  readonly fatal: (text: string) => never;
  readonly graphLock = new GraphLock();
  /** All nodes in the order in which they got their names. Changed on the monitor side only. */
  readonly #nodes = new Map<string, BlockNode>();
  readonly #roots = new Set<BlockChild>();
  /** Nodes that have no name any more and are being flushed and closed. */
  readonly #closing = new Set<BlockNode>();
  readonly #otherEngines = new Map<EngineKind, AioEngine>();
  readonly #ending = new AbortController();
  /** Waiting for others that an opening node does; ends soon after `endSignal`. */
  readonly #waiting = new Set<Promise<unknown>>();
  /** See patience.ts. */
  endBeganMs: number | null = null;
  #generatedNames = 0;
  #ordered = 0;

  constructor({
    engine,
    events,
    drivers,
    secret = noSecret,
    tlsCreds = noTlsCreds,
    checkPrManager = noPrManager,
    useThrottleGroup = () => null,
    definitions = PLAIN_DEFINITIONS,
    clock = systemClock,
    report = reportOnStderr,
    note = report,
    print = report,
    tell = () => undefined,
    fatal = endProcess,
  }: BlockLayerParts) {
    this.engine = engine;
    this.events = events;
    this.drivers = drivers;
    this.secret = secret;
    this.tlsCreds = tlsCreds;
    this.checkPrManager = checkPrManager;
    this.useThrottleGroup = useThrottleGroup;
    this.definitions = definitions;
    this.clock = clock;
    this.report = report;
    this.note = note;
    this.print = print;
    this.tell = tell;
    this.fatal = fatal;
  }

  /** Oldest first. */
  get nodes(): readonly BlockNode[] {
    return [...this.#nodes.values()];
  }

  /** The driver of that name, loaded if it was not yet; undefined: there is none. */
  driver(name: string): BlockDriver | Promise<BlockDriver> | undefined {
    const face = Object.hasOwn(this.drivers, name) ? this.drivers[name] : undefined;
    return face && driverBehind(face);
  }

  findNode(name: string): BlockNode | null {
    return this.#nodes.get(name) ?? null;
  }

  /** The engine of a kind, made at first use; throws when the host cannot provide it. */
  engineOf(kind: EngineKind): AioEngine {
    if (this.engine.kind === kind) return this.engine;
    const known = this.#otherEngines.get(kind);
    if (known !== undefined) return known;
    const { engine } = createEngine(kind);
    this.#otherEngines.set(kind, engine);
    return engine;
  }

  /** What limits the members of the group; the same for all of them. */
  throttleOf(group: ThrottleGroup): Throttle {
    const known = this.#throttles.get(group);
    if (known !== undefined) return known;
    const throttle = createThrottle(group, this.clock);
    this.#throttles.set(group, throttle);
    return throttle;
  }

  /** A name for a node the user did not name: "#block" with a number and two random digits, never used before. */
  generateName(): string {
    for (;;) {
      const random = Math.floor(Math.random() * 100);
      const name = `#block${this.#generatedNames++}${String(random).padStart(2, '0')}`;
      if (!this.#nodes.has(name)) return name;
    }
  }

  /** Enters a node into the table; the name must be free. */
  register(node: BlockNode): void {
    assert(!this.#nodes.has(node.name), `node name '${node.name}' registered twice`);
    this.order(node);
    this.#nodes.set(node.name, node);
  }

  /** Gives a node its place among all nodes, if it has none yet. */
  order(node: BlockNode): void {
    node.order ??= ++this.#ordered;
  }

  unregister(node: BlockNode): void {
    this.#nodes.delete(node.name);
  }

  /** Puts in an edge; permissions are taken as a whole or the edge is not there afterwards. */
  attachChild(
    parent: EdgeParent,
    name: string,
    roles: number,
    node: BlockNode,
    pair?: PermissionPair,
  ): Promise<BlockChild> {
    return changeGraph(this, [], (graph) => graph.attach(parent, name, roles, node, pair));
  }

  /**
   * Takes a node for an export or job. Throws a permission conflict in the original's words, or the driver's veto
   * (a lock held by another process). `name` names the edge in the errors of others.
   */
  async createBackend(
    node: BlockNode,
    want: PermissionPair,
    owner: BackendOwner,
    name = 'root',
  ): Promise<BlockBackend> {
    const backend = new BlockBackend(owner, (closing) => this.#releaseRoot(closing.root));
    const edge = await this.attachChild({ kind: 'root', root: backend }, name, 0, node, want);
    backend.attach(edge);
    this.#roots.add(edge);
    return backend;
  }

  async #releaseRoot(edge: BlockChild): Promise<void> {
    await changeGraph(this, [], (graph) => graph.detach(edge));
    this.#roots.delete(edge);
  }

  /** The edges of users that are no nodes, oldest first. */
  get rootEdges(): readonly BlockChild[] {
    return [...this.#roots];
  }

  /** Whether somebody holds the node: the monitor, code, or a parent. */
  #isUsed(node: BlockNode): boolean {
    return node.monitorOwned || node.refs > 0 || node.parents.length > 0;
  }

  /** Closes the node if nobody holds it and it is not closed yet. */
  async closeIfUnused(node: BlockNode): Promise<void> {
    if (this.findNode(node.name) === node && !this.#isUsed(node)) await this.closeNode(node);
  }

  /** Keeps the node open until `release`, whatever becomes of its parents. */
  hold(node: BlockNode): void {
    node.refs++;
  }

  /** Gives up a hold; the last one who lets go closes the node. */
  async release(node: BlockNode): Promise<void> {
    assert(node.refs > 0, `node '${node.name}' released twice`);
    node.refs--;
    await this.closeIfUnused(node);
  }

  /** Flushes and closes an unused node, then the children nobody else uses. */
  async closeNode(node: BlockNode): Promise<void> {
    assert(!this.#isUsed(node), `node '${node.name}' closed while in use`);
    this.unregister(node);
    let failure: { readonly error: unknown } | undefined;
    // Closing goes on after errors, but whoever asked for it must hear that data may not have reached the disk.
    const attempt = async (action: () => Promise<void> | undefined): Promise<void> => {
      try {
        await action();
      } catch (error) {
        failure ??= { error };
      }
    };
    this.#closing.add(node);
    await drained(node, async () => {
      await attempt(() => wrapped.flush(node));
      await attempt(() => node.driver.close?.(node));
    });
    this.#closing.delete(node);
    for (const edge of [...node.children].reverse())
      await attempt(() => changeGraph(this, [], (graph) => graph.detach(edge)));
    if (failure !== undefined) throw failure.error;
  }

  /** blockdev-del. Throws unless the node was made by the monitor and has no users. */
  async deleteNode(name: string): Promise<void> {
    const node = this.findNode(name);
    if (node === null) throw new BlockError(`Failed to find node with node-name='${name}'`);
    // Edges of other names are those of jobs, which say more by their operation blockers.
    if (node.parents.some((edge) => edge.parent.kind === 'root' && edge.name === 'root'))
      throw new BlockError(`Node ${name} is in use`);
    checkOperation(node, 'delete');
    if (!node.monitorOwned) throw new BlockError(`Node ${name} is not owned by the monitor`);
    if (node.parents.length > 0 || node.refs > 0) throw new BlockError(`Block device ${name} is in use`);
    node.monitorOwned = false;
    await this.closeNode(node);
  }

  /** Gives up what waits for servers that may never answer: their requests fail. At shutdown, when patience is over. */
  cancelRequests(): void {
    for (const nodes of [this.#nodes.values(), this.#closing])
      for (const node of nodes) node.driver.cancelInFlight?.(node);
  }

  /** Aborted when the layer closes: an opening node gives up waiting for others. */
  get endSignal(): AbortSignal {
    return this.#ending.signal;
  }

  /** The end is near: what is opening, and work that takes long, gives up. closeAll follows. */
  giveUp(): void {
    this.#ending.abort();
  }

  /** Makes closeAll wait for what an opening node waits for. */
  async whileOpening<T>(waiting: Promise<T>): Promise<T> {
    this.#waiting.add(waiting);
    try {
      return await waiting;
    } finally {
      this.#waiting.delete(waiting);
    }
  }

  /** Closes every node, at shutdown; users must be gone. Goes on after errors and throws the first at the end. */
  async closeAll(): Promise<void> {
    this.#ending.abort();
    await Promise.allSettled(this.#waiting);
    let failure: unknown;
    for (const node of this.nodes.toReversed()) {
      node.monitorOwned = false;
      try {
        await this.closeIfUnused(node);
      } catch (error) {
        failure ??= error;
      }
    }
    for (const engine of this.#otherEngines.values()) engine.close();
    this.#otherEngines.clear();
    if (failure !== undefined) throw failure;
  }
}

function endProcess(text: string): never {
  process.stderr.write(text);
  process.exit(1);
}

function reportOnStderr(text: string): void {
  process.stderr.write(text);
}

function noSecret(id: string): Buffer {
  throw new BlockError(`No secret with id '${id}'`);
}

function noTlsCreds(id: string): TlsCredentials {
  throw new BlockError(`No TLS credentials with id '${id}'`);
}

function noPrManager(id: string): never {
  throw new BlockError(`No persistent reservation manager with id '${id}'`);
}

/** Permissions of a user that only looks. */
export const READ_ONLY_USE: PermissionPair = { perm: Perm.consistentRead, shared: Perm.all };
