/**
 * What the metrics tell of the block layer: families by name, each read at the moment of a scrape from counters and states
 * that are there anyway. Nothing here is called between scrapes.
 *
 * Names and units follow Prometheus' conventions: seconds, bytes, `_total` for counters. Not here: how they are written
 * (scrape.ts), who may read them (server.ts), what is known of the process (prom-client's own).
 */

import type { BlockJobInfo, JobInfo } from '../../schema/generated/types.ts';
import { clientMemory } from '../../src/aio/host/client-memory.ts';
import type { CommandContext } from '../../src/commands/context.ts';
import { latencyBordersUs, REQUEST_KINDS, type RequestCounters } from '../../src/exports/statistics.ts';
import type { ExportView } from '../../src/exports/table.ts';
import { queryBlockJobs } from '../../src/jobs/block-job.ts';
import { withJobLock } from '../../src/jobs/job-common.ts';
import { queryJobs } from '../../src/jobs/job-monitor.ts';
import { PACKAGE_VERSION, VERSION_INFO } from '../../src/qmp/version.ts';

export interface Sample {
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
  /** Where it is not the family's: the parts of a histogram. */
  readonly metricName?: string;
}

export interface Family {
  readonly name: string;
  readonly help: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  samples(): Iterable<Sample>;
}

/** What is looked at. */
export interface Watched {
  readonly context: CommandContext;
  readonly monitorClients: () => number;
}

const US_PER_S = 1e6;
const MS_PER_S = 1e3;

/** One sample a thing; the value null: none for this one. */
function family<T>(
  type: 'counter' | 'gauge',
  name: string,
  help: string,
  things: () => readonly T[],
  labels: (thing: T) => Sample['labels'],
  value: (thing: T) => number | null,
): Family {
  return {
    name: `qblockd_${name}`,
    help,
    type,
    *samples() {
      for (const thing of things()) {
        const number = value(thing);
        if (number !== null) yield { labels: labels(thing), value: number };
      }
    },
  };
}

/** All operations of all exports. */
interface Operation {
  readonly exp: ExportView;
  readonly kind: string;
  readonly counters: RequestCounters;
}

const labelsOf = ({ exp, kind }: Operation): Sample['labels'] => ({ export: exp.id, operation: kind });

/** A histogram of an operation, from counts by bucket. An operation that nobody has asked for has none yet. */
function* histogramOf(name: string, operation: Operation): Iterable<Sample> {
  const { operations, totalUs, latency } = operation.counters;
  if (operations === 0) return;
  const labels = labelsOf(operation);
  let below = 0;
  for (const [index, borderUs] of latencyBordersUs().entries()) {
    below += latency[index] ?? 0;
    const le = String(borderUs / US_PER_S);
    yield { metricName: `${name}_bucket`, labels: { ...labels, le }, value: below };
  }
  yield { metricName: `${name}_bucket`, labels: { ...labels, le: '+Inf' }, value: operations };
  yield { metricName: `${name}_sum`, labels, value: totalUs / US_PER_S };
  yield { metricName: `${name}_count`, labels, value: operations };
}

function exportFamilies({ exports }: CommandContext): Family[] {
  const views = (): ExportView[] => exports.observe();
  const operations = (): Operation[] =>
    views().flatMap((exp) => REQUEST_KINDS.map((kind) => ({ exp, kind, counters: exp.statistics[kind] })));
  const byId = ({ id }: ExportView): Sample['labels'] => ({ export: id });
  const duration = 'qblockd_export_request_duration_seconds';
  return [
    family(
      'gauge',
      'export_info',
      'Exports there are; always 1.',
      views,
      ({ id, type, nodeName }) => ({ export: id, type, node: nodeName }),
      () => 1,
    ),
    family('gauge', 'export_clients', 'Clients being served.', views, byId, ({ clients }) => clients),
    family(
      'gauge',
      'export_requests_in_flight',
      'Requests begun and not ended, without those that end within the turn of the event loop.',
      views,
      byId,
      ({ inFlight }) => inFlight,
    ),
    family(
      'counter',
      'export_requests_total',
      'Requests that succeeded.',
      operations,
      labelsOf,
      ({ counters }) => counters.operations,
    ),
    family(
      'counter',
      'export_request_failures_total',
      'Requests that failed.',
      operations,
      labelsOf,
      ({ counters }) => counters.failed,
    ),
    family(
      'counter',
      'export_request_bytes_total',
      'Bytes of requests that succeeded.',
      operations,
      labelsOf,
      ({ counters }) => counters.bytes,
    ),
    {
      name: duration,
      help: 'Time from the arrival of a request to its end, of those that succeeded.',
      type: 'histogram',
      *samples() {
        for (const operation of operations()) yield* histogramOf(duration, operation);
      },
    },
  ];
}

function nodeFamilies({ layer }: CommandContext): Family[] {
  const nodes = (): typeof layer.nodes => layer.nodes;
  type Node = (typeof layer.nodes)[number];
  const byName = ({ name }: Node): Sample['labels'] => ({ node: name });
  return [
    family(
      'gauge',
      'node_info',
      'Block nodes there are; always 1.',
      nodes,
      ({ name, driver, readOnly }) => ({ node: name, driver: driver.name, read_only: String(readOnly) }),
      () => 1,
    ),
    family('gauge', 'node_size_bytes', 'Length of the node.', nodes, byName, ({ totalBytes }) => totalBytes),
    family(
      'gauge',
      'node_requests_in_flight',
      'Requests inside the node.',
      nodes,
      byName,
      ({ inFlight }) => inFlight,
    ),
    family(
      'gauge',
      'node_drained',
      'Depth of drained sections: new requests wait while it is not 0.',
      nodes,
      byName,
      ({ quiesced }) => quiesced,
    ),
  ];
}

function jobFamilies({ jobs }: CommandContext): Family[] {
  const all = (): JobInfo[] => withJobLock(jobs, (lock) => queryJobs(jobs, lock));
  const blockJobs = (): BlockJobInfo[] => withJobLock(jobs, (lock) => queryBlockJobs(jobs, lock));
  const byId = ({ id }: JobInfo): Sample['labels'] => ({ job_id: id });
  return [
    family(
      'gauge',
      'job_info',
      'Jobs there are, with the state they are in; always 1.',
      all,
      ({ id, type, status }) => ({ job_id: id, type, status }),
      () => 1,
    ),
    family(
      'gauge',
      'job_progress_done',
      'Work done; bytes, for jobs that copy.',
      all,
      byId,
      (job) => job['current-progress'],
    ),
    family(
      'gauge',
      'job_progress_expected',
      'Work done and work known to be left; bytes, for jobs that copy.',
      all,
      byId,
      (job) => job['total-progress'],
    ),
    family('gauge', 'job_failed', 'Whether the job has failed.', all, byId, ({ error }) =>
      error === undefined ? 0 : 1,
    ),
    family(
      'gauge',
      'job_speed_limit_bytes_per_second',
      'Limit of a block job; 0: none.',
      blockJobs,
      ({ device }) => ({ job_id: device }),
      ({ speed }) => speed,
    ),
  ];
}

function processFamilies({ context: { layer }, monitorClients }: Watched): Family[] {
  const one = [null];
  const single = (type: 'counter' | 'gauge', name: string, help: string, value: () => number): Family =>
    family(
      type,
      name,
      help,
      () => one,
      () => ({}),
      value,
    );
  const { major, minor, micro } = VERSION_INFO.qemu;
  const sides = ['read', 'write'] as const;
  const counts = (side: 'read' | 'write') => layer.graphLock.load[`${side}Waits`];
  return [
    family(
      'gauge',
      'build_info',
      'What runs; always 1.',
      () => one,
      () => ({
        version: PACKAGE_VERSION,
        qmp_version: `${major}.${minor}.${micro}`,
        engine: layer.engine.kind,
      }),
      () => 1,
    ),
    single('gauge', 'monitor_clients', 'QMP clients that are connected.', monitorClients),
    single(
      'gauge',
      'client_memory_bytes',
      'Memory that requests, replies and messages of all clients hold.',
      () => clientMemory.heldBytes,
    ),
    single('gauge', 'graph_lock_readers', 'Holders of the graph lock.', () => layer.graphLock.load.readers),
    single(
      'gauge',
      'graph_lock_waiting',
      'Requests and graph changes that wait for the graph lock.',
      () => layer.graphLock.load.waiting,
    ),
    family(
      'counter',
      'graph_lock_waits_total',
      'How often the graph lock was waited for.',
      () => sides,
      (side) => ({ side }),
      (side) => counts(side).waits,
    ),
    family(
      'counter',
      'graph_lock_wait_seconds_total',
      'How long the graph lock was waited for.',
      () => sides,
      (side) => ({ side }),
      (side) => counts(side).waitedMs / MS_PER_S,
    ),
  ];
}

/** All of them. */
export function blockFamilies(watched: Watched): Family[] {
  const { context } = watched;
  return [
    ...processFamilies(watched),
    ...exportFamilies(context),
    ...nodeFamilies(context),
    ...jobFamilies(context),
  ];
}
