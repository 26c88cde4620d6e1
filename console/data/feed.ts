/**
 * What the page knows of the daemon: asked for while somebody looks, more often where something happens, and told to all
 * who show it.
 *
 * Cheap for the daemon on purpose: counters and jobs once a second, the graph every other second and after events, and
 * nothing at all while the page is hidden.
 */

import type { Client } from '../../client/client.ts';
import type { QmpEvent } from '../../client/events.ts';
import type {
  BlockExportInfo,
  BlockJobInfo,
  JobInfo,
  XBlockExportDetails,
  XBlockGraph,
} from '../../schema/generated/types.ts';
import { createTraffic, type Traffic } from './traffic.ts';

export interface Snapshot {
  readonly graph: XBlockGraph;
  readonly exports: readonly BlockExportInfo[];
  readonly details: readonly XBlockExportDetails[];
  readonly jobs: readonly JobInfo[];
  readonly blockJobs: readonly BlockJobInfo[];
  readonly timeMs: number;
}

/** What has been asked anew. */
export type Part = 'graph' | 'exports' | 'jobs';

export interface Feed {
  readonly snapshot: Snapshot;
  readonly traffic: Traffic;
  /** Called after each look with what was asked. */
  onUpdate(listener: (snapshot: Snapshot, parts: ReadonlySet<Part>) => void): void;
  onEvent(listener: (event: QmpEvent) => void): void;
  /** Looks soon: something was changed. */
  hurry(): void;
}

const TICK_MS = 1000;
/** Ticks from one look at the graph, and at jobs where none are known, to the next. */
const GRAPH_TICKS = 2;
/** Members of the graph that cost the daemon one tick more: thousands are not asked for every other second. */
const MEMBERS_A_TICK = 100;
const IDLE_JOB_TICKS = 3;
/** Events come in groups: what they are about is asked for once. */
const SETTLE_MS = 150;

const EMPTY: Snapshot = {
  graph: { members: [], edges: [] },
  exports: [],
  details: [],
  jobs: [],
  blockJobs: [],
  timeMs: 0,
};

/** Events that change nothing that is shown elsewhere, and may come often. */
const QUIET_EVENTS: ReadonlySet<string> = new Set([
  'BLOCK_IO_ERROR',
  'BLOCK_JOB_ERROR',
  'BLOCK_WRITE_THRESHOLD',
]);

function nextVisible(): Promise<void> {
  return new Promise((resolve) => {
    document.addEventListener('visibilitychange', () => resolve(), { once: true });
  });
}

export function createFeed(client: Client, reportTrouble: (error: unknown) => void): Feed {
  const traffic = createTraffic();
  const listeners: ((snapshot: Snapshot, parts: ReadonlySet<Part>) => void)[] = [];
  const eventListeners: ((event: QmpEvent) => void)[] = [];
  let snapshot = EMPTY;
  let hurried = true;
  let wake: () => void = () => undefined;

  const askJobs = async (): Promise<Pick<Snapshot, 'jobs' | 'blockJobs'>> => {
    const [jobs, blockJobs] = await Promise.all([client.queryJobs(), client.queryBlockJobs()]);
    return { jobs, blockJobs };
  };
  const askExports = async (): Promise<Pick<Snapshot, 'details'>> => ({
    details: await client.xQueryBlockExports(),
  });
  const askGraph = async (): Promise<Pick<Snapshot, 'graph' | 'exports'>> => {
    const [graph, exports] = await Promise.all([client.xQueryBlockGraph(), client.queryBlockExports()]);
    return { graph, exports };
  };

  const look = async (tick: number): Promise<void> => {
    const parts = new Set<Part>(['exports']);
    const graphTicks = Math.max(GRAPH_TICKS, Math.ceil(snapshot.graph.members.length / MEMBERS_A_TICK));
    if (hurried || tick % graphTicks === 0) parts.add('graph');
    if (hurried || snapshot.jobs.length > 0 || tick % IDLE_JOB_TICKS === 0) parts.add('jobs');
    hurried = false;
    const found = await Promise.all([
      askExports(),
      parts.has('graph') ? askGraph() : null,
      parts.has('jobs') ? askJobs() : null,
    ]);
    const timeMs = performance.timeOrigin + performance.now();
    snapshot = Object.assign({}, snapshot, ...found, { timeMs }) as Snapshot;
    traffic.add(timeMs, snapshot.details);
    for (const listener of listeners) listener(snapshot, parts);
  };

  const pause = (): Promise<void> =>
    new Promise((resolve) => {
      const timer = setTimeout(resolve, TICK_MS);
      wake = () => {
        clearTimeout(timer);
        setTimeout(resolve, SETTLE_MS);
      };
      if (hurried) wake();
    });

  const hurry = (): void => {
    if (hurried) return;
    hurried = true;
    wake();
  };

  const run = async (): Promise<void> => {
    for (let tick = 0; ; tick += 1) {
      // A connection that is lost comes back, or does not: the next look waits for it.
      await look(tick).catch(reportTrouble);
      await pause();
      while (document.hidden) await nextVisible();
    }
  };

  const listen = async (): Promise<void> => {
    for await (const event of client.eventsAndReconnects()) {
      if (event.name !== 'reconnected') for (const listener of eventListeners) listener(event);
      if (!QUIET_EVENTS.has(event.name)) hurry();
    }
  };

  // Both end with the page only; listeners are added in this turn.
  queueMicrotask(() => {
    run().catch(reportTrouble);
    listen().catch(reportTrouble);
  });

  return {
    get snapshot() {
      return snapshot;
    },
    traffic,
    onUpdate: (listener) => void listeners.push(listener),
    onEvent: (listener) => void eventListeners.push(listener),
    hurry,
  };
}
