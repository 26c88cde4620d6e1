/**
 * The debug dump (SIGUSR2): what the daemon is doing at this moment, as one JSON object a line, in the file of
 * `--dump-file` or in the log. For whoever looks into one that does not answer as it should.
 *
 * Everything is read within the turn; nothing waits for nodes that may hang. No secrets: options are left out.
 */

import { appendFileSync } from 'node:fs';
import { clientMemory } from '../src/aio/host/client-memory.ts';
import { asMonitor } from '../src/block/graph/debug.ts';
import { nodesInOrder } from '../src/block/query/query.ts';
import { blockGraphNow } from '../src/block/query/query-graph.ts';
import { requestsOfAll } from '../src/block/query/requests.ts';
import { queryBlockJobs } from '../src/jobs/block-job.ts';
import { withJobLock } from '../src/jobs/job-common.ts';
import { queryJobs } from '../src/jobs/job-monitor.ts';
import { PACKAGE_VERSION } from '../src/qmp/version.ts';
import type { Daemon } from './daemon.ts';
import type { Logger } from './logger.ts';

/** What is going on, ready for JSON. */
export function debugDump({ context, host, listeners }: Daemon): object {
  const { layer, jobs, exports, chardevs } = context;
  const { readers, waiting } = layer.graphLock.load;
  return asMonitor(() => ({
    time: new Date().toISOString(),
    version: PACKAGE_VERSION,
    pid: process.pid,
    'uptime-seconds': Math.round(process.uptime()),
    engine: layer.engine.kind,
    'graph-lock': { readers, waiting, writing: layer.graphLock.writing },
    nodes: nodesInOrder(layer).map((node) => ({
      'node-name': node.name,
      driver: node.driver.name,
      active: node.active,
      'read-only': node.readOnly,
      bytes: node.totalBytes,
      'in-flight': node.inFlight,
      drained: node.quiesced,
      children: node.children.map((edge) => `${edge.name}: ${edge.node.name}`),
      parents: node.parents.map((edge) =>
        edge.parent.kind === 'node' ? edge.parent.node.name : edge.parent.root.describe(),
      ),
      blockers: node.opBlockers.map(({ reason }) => reason),
    })),
    graph: blockGraphNow(layer),
    requests: requestsOfAll(layer),
    jobs: withJobLock(jobs, (lock) => ({ all: queryJobs(jobs, lock), block: queryBlockJobs(jobs, lock) })),
    exports: exports.observe().map(({ id, type, nodeName, clients, inFlight }) => ({
      ...{ id, type, 'node-name': nodeName, clients, 'in-flight': inFlight },
    })),
    monitors: {
      clients: host.clientCount,
      listeners: listeners.map(({ url }) => url.replace(/token=[^&]*/, 'token=***')),
      chardevs: chardevs.list().map((device) => `${device.id}: ${device.backend.filename()}`),
    },
    memory: { ...process.memoryUsage(), 'held-by-clients': clientMemory.heldBytes },
    'event-loop': process.getActiveResourcesInfo().reduce<Record<string, number>>((counts, name) => {
      counts[name] = (counts[name] ?? 0) + 1;
      return counts;
    }, {}),
  }));
}

/** Writes a dump to the file, which is added to, or to the log. Never throws. */
export function writeDump(daemon: Daemon, file: string | null, logger: Logger): void {
  try {
    const dump = debugDump(daemon);
    if (file === null) logger.warn({ dump }, 'debug dump');
    else appendFileSync(file, `${JSON.stringify(dump)}\n`, { mode: 0o600 });
  } catch (error) {
    logger.error({ err: error }, 'the debug dump failed');
  }
}
