/** The block graph as it is drawn: members and links under keys that stay the same from one look to the next. */

import type { XBlockGraph, XBlockGraphEdge, XBlockGraphMember } from '../../schema/generated/types.ts';
import type { Snapshot } from '../data/feed.ts';
import { formatBytes, shown } from '../data/format.ts';
import type { Link } from './layout.ts';

export interface DrawnMember {
  readonly key: string;
  readonly member: XBlockGraphMember;
  /** What stands in its box, and beside it for those who do not see. */
  readonly title: string;
  readonly line: string;
  readonly marks: readonly string[];
}

export interface DrawnLink extends Link {
  readonly edge: XBlockGraphEdge;
}

export interface Drawn {
  readonly members: readonly DrawnMember[];
  readonly links: readonly DrawnLink[];
}

/** Short signs of permissions, for labels. */
const SIGNS = { 'consistent-read': 'R', write: 'W', 'write-unchanged': 'U', resize: 'Z' } as const;

/** "RW" for who reads and writes. */
export function signsOf(permissions: XBlockGraphEdge['perm']): string {
  return Object.entries(SIGNS)
    .filter(([name]) => permissions.some((permission) => permission === name))
    .map(([, sign]) => sign)
    .join('');
}

export function keyOf({ kind, name, id }: XBlockGraphMember): string {
  return kind === 'user' ? `user ${id}` : `${kind} ${name}`;
}

function lineOf(member: XBlockGraphMember, snapshot: Snapshot): string {
  switch (member.kind) {
    case 'node':
      return `${member.driver ?? ''} · ${formatBytes(member.size ?? 0)}`;
    case 'job': {
      const job = snapshot.jobs.find(({ id }) => id === member.name);
      return job === undefined ? 'job' : `${job.type} · ${job.status}`;
    }
    case 'export': {
      const type = snapshot.exports.find(({ id }) => id === member.name)?.type ?? '';
      const clients = snapshot.details.find(({ id }) => id === member.name)?.clients ?? 0;
      return `${type} export · ${clients === 1 ? '1 client' : `${clients} clients`}`;
    }
    case 'user':
      return 'user of the node';
  }
}

function marksOf(member: XBlockGraphMember): string[] {
  const marks: string[] = [];
  if (member['read-only'] === true) marks.push('read-only');
  if ((member.drained ?? 0) > 0) marks.push('drained');
  return marks;
}

/** Everything that is drawn of a snapshot. */
export function drawnOf(snapshot: Snapshot): Drawn {
  const graph: XBlockGraph = snapshot.graph;
  const keys = new Map(graph.members.map((member) => [member.id, keyOf(member)]));
  const counts = new Map<string, number>();
  const links = graph.edges.map((edge) => {
    const [from = '', to = ''] = [keys.get(edge.parent), keys.get(edge.child)];
    const plain = JSON.stringify([from, to, edge.name]);
    const count = counts.get(plain) ?? 0;
    counts.set(plain, count + 1);
    return { key: `${plain}${count}`, from, to, edge };
  });
  const members = graph.members.map((member) => ({
    key: keyOf(member),
    member,
    title: member.kind === 'user' ? 'unnamed user' : shown(member.name),
    line: lineOf(member, snapshot),
    marks: marksOf(member),
  }));
  return { members, links };
}
