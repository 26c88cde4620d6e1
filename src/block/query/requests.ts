/** x-query-requests: what is under way in nodes, for how long, and what it waits for. */

import type { XRequest, XRequestsOfNode, XRequestWait } from '../../../schema/generated/types.ts';
import type { BlockNode } from '../graph/node.ts';
import type { TrackedRequest } from '../graph/tracked.ts';
import type { BlockLayer } from '../layer.ts';
import { nodesInOrder } from './query.ts';

/** What is under way in one node. */
export function requestsOf(node: BlockNode): XRequestsOfNode {
  const requests: XRequest[] = [];
  for (let at = node.tracked.last; at !== null; at = at.previous) requests.push(describe(node, at));
  return {
    'node-name': node.name,
    driver: node.driver.name,
    'in-flight': node.inFlight,
    drained: node.quiesced,
    'held-back': heldBack(node),
    requests,
  };
}

/** The same of every node in which something is under way, or held back. */
export function requestsOfAll(layer: BlockLayer): XRequestsOfNode[] {
  return nodesInOrder(layer)
    .map(requestsOf)
    .filter((each) => each['in-flight'] > 0 || each['held-back'] > 0 || each.drained > 0);
}

function describe(node: BlockNode, request: TrackedRequest): XRequest {
  const blocker = request.waitingFor;
  return {
    kind: request.kind,
    offset: request.offset,
    bytes: Number.isFinite(request.bytes) ? request.bytes : -1,
    'age-us': Math.round((performance.now() - request.startMs) * 1000),
    serialising: request.serialising,
    'waits-for': waitOf(node, request),
    ...(blocker !== null && { 'blocked-by': blocker.offset }),
  };
}

function waitOf(node: BlockNode, request: TrackedRequest): XRequestWait {
  if (request.waitingFor !== null) return 'request';
  const below = node.children.map((edge) => edge.node);
  if (below.some(({ inFlight }) => inFlight > 0)) return 'child';
  if (below.some(({ quiesced }) => quiesced > 0)) return 'drain';
  return node.driver.kind === 'protocol' ? 'host' : 'driver';
}

/** Requests that users of the node have begun and that are not inside yet. */
function heldBack(node: BlockNode): number {
  if (node.inFlight > 0 && node.quiesced === 0) return 0;
  const begun = node.parents.map(({ parent }) => (parent.kind === 'root' ? (parent.root.pending ?? 0) : 0));
  return Math.max(0, begun.reduce((sum, each) => sum + each, 0) - node.inFlight);
}
