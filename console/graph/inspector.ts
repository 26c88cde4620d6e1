/** What is known of the chosen member of the graph: its properties, who uses it, what it uses, and what can be done. */

import type { Client } from '../../client/client.ts';
import type { BlockDeviceInfo, XBlockGraphEdge, XBlockGraphMember } from '../../schema/generated/types.ts';
import type { Snapshot } from '../data/feed.ts';
import { formatBytes, shown } from '../data/format.ts';
import type { Forms } from '../forms/dialog.ts';
import { ask } from '../page/ask.ts';
import { byId, fill, h, setText } from '../page/dom.ts';
import { tellDone, tellError } from '../page/notices.ts';
import { keyOf } from './members.ts';

export interface Inspector {
  /** Shows a member; null: none. */
  choose(key: string | null): void;
  update(snapshot: Snapshot): void;
}

interface Surroundings {
  readonly client: Client;
  readonly forms: Forms;
  readonly hurry: () => void;
  /** The user has put the member away. */
  readonly closed: () => void;
  readonly choose: (key: string) => void;
}

type Row = readonly [name: string, value: string];

function rowsOf(member: XBlockGraphMember, info: BlockDeviceInfo | null, snapshot: Snapshot): Row[] {
  const rows: Row[] = [];
  if (member.kind === 'export') {
    const exp = snapshot.exports.find(({ id }) => id === member.name);
    const details = snapshot.details.find(({ id }) => id === member.name);
    rows.push(['Type', exp?.type ?? ''], ['Clients', String(details?.clients ?? 0)]);
    for (const { kind, operations, failed, bytes } of details?.requests ?? []) {
      if (operations + failed === 0) continue;
      const failures = failed > 0 ? `, ${failed} failed` : '';
      rows.push([`${kind} requests`, `${operations} (${formatBytes(bytes)})${failures}`]);
    }
  }
  if (member.kind === 'job') {
    const job = snapshot.jobs.find(({ id }) => id === member.name);
    rows.push(['Type', job?.type ?? ''], ['Status', job?.status ?? '']);
  }
  if (member.kind !== 'node') return rows;
  rows.push(
    ['Driver', member.driver ?? ''],
    ['Size', `${formatBytes(member.size ?? 0)} (${member.size ?? 0} bytes)`],
  );
  if ((member.filename ?? '') !== '') rows.push(['File', member.filename ?? '']);
  rows.push(['Access', member['read-only'] === true ? 'read-only' : 'read and write']);
  rows.push(['Requests inside', String(member['in-flight'] ?? 0)]);
  if ((member.drained ?? 0) > 0) rows.push(['Drained', `depth ${member.drained}`]);
  if (info === null) return rows;
  const { image, cache } = info;
  if (image['actual-size'] !== undefined) rows.push(['Allocated', formatBytes(image['actual-size'])]);
  if (image['cluster-size'] !== undefined) rows.push(['Cluster', formatBytes(image['cluster-size'])]);
  if (image['backing-filename'] !== undefined) rows.push(['Backing file', image['backing-filename']]);
  rows.push([
    'Cache',
    `${cache.direct ? 'direct' : 'page cache'}${cache['no-flush'] ? ', flushes ignored' : ''}`,
  ]);
  for (const bitmap of info['dirty-bitmaps'] ?? [])
    rows.push([`Bitmap ${bitmap.name ?? '(unnamed)'}`, `${formatBytes(bitmap.count)} dirty`]);
  for (const snapshotInfo of image.snapshots ?? []) rows.push(['Snapshot', snapshotInfo.name]);
  return rows;
}

function edgeItem(
  edge: XBlockGraphEdge,
  other: XBlockGraphMember,
  choose: (key: string) => void,
): HTMLElement {
  const title = other.kind === 'user' ? 'unnamed user' : shown(other.name);
  const to = h('button', { type: 'button', class: 'link-button' }, h('bdi', {}, title));
  to.addEventListener('click', () => choose(keyOf(other)));
  const detail = (name: string, values: readonly string[], none: string): HTMLElement =>
    h('div', { class: 'edge-line' }, h('span', {}, name), values.length > 0 ? values.join(', ') : none);
  return h(
    'li',
    {},
    h('div', { class: 'edge-head' }, h('code', {}, shown(edge.name)), ` ${other.kind} `, to),
    edge.roles.length > 0 ? detail('role', edge.roles, '') : null,
    detail('takes', edge.perm, 'nothing'),
    detail('shares', edge['shared-perm'], 'nothing'),
  );
}

export function createInspector({ client, forms, hurry, closed, choose }: Surroundings): Inspector {
  const panel = byId('inspector');
  const title = h('h2', { tabindex: -1 });
  const close = h('button', { type: 'button', class: 'quiet', 'aria-label': 'Close the details' }, '×');
  const properties = h('dl', { class: 'properties' });
  const edges = h('div');
  const actions = h('div', { class: 'actions' });
  fill(panel, h('header', { class: 'panel-head' }, title, close), actions, properties, edges);
  let key: string | null = null;
  let info: BlockDeviceInfo | null = null;
  let latest: Snapshot | null = null;
  let drawnEdges = '';

  const run = async (what: Promise<unknown>, done: string): Promise<void> => {
    try {
      await what;
      tellDone(done);
    } catch (error) {
      tellError(error);
    }
    hurry();
  };

  const button = (text: string, act: () => void, danger = false): HTMLElement =>
    h('button', { type: 'button', ...(danger && { class: 'danger' }), on: { click: act } }, text);

  const removeNode = async (name: string): Promise<void> => {
    const about = `The node ${shown(name)} goes; the image it stands for stays where it is.`;
    if (await ask('Delete the node?', about, 'Delete'))
      await run(client.blockdevDel({ 'node-name': name }), `The node ${name} has been deleted`);
  };

  const removeExport = async (id: string): Promise<void> => {
    const clients = latest?.details.find((exp) => exp.id === id)?.clients ?? 0;
    const about =
      clients > 0
        ? `${clients === 1 ? 'A client is' : `${clients} clients are`} connected, and will be cut off.`
        : 'No client is connected.';
    if (await ask(`Remove the export ${shown(id)}?`, about, 'Remove')) {
      const mode = clients > 0 ? 'hard' : 'safe';
      await run(client.blockExportDel({ id, mode }), `The export ${id} is being removed`);
    }
  };

  const actionsOf = ({ kind, name }: XBlockGraphMember): HTMLElement[] => {
    if (kind === 'export') return [button('Remove …', () => void removeExport(name), true)];
    if (kind === 'job') return [button('Show in the list', () => byId('jobs').scrollIntoView())];
    if (kind !== 'node') return [];
    return [
      button('Export …', () => forms.open('block-export-add', { type: 'nbd', id: name, 'node-name': name })),
      button('Mirror …', () => forms.open('blockdev-mirror', { device: name, sync: 'full' })),
      button('Back up …', () => forms.open('blockdev-backup', { device: name, sync: 'full' })),
      button('Stream …', () => forms.open('block-stream', { device: name })),
      button('Commit …', () => forms.open('block-commit', { device: name })),
      button('Resize …', () => forms.open('block_resize', { 'node-name': name })),
      button('Delete …', () => void removeNode(name), true),
    ];
  };

  const showEdges = (member: XBlockGraphMember, { graph }: Snapshot): void => {
    const byNumber = new Map(graph.members.map((other) => [other.id, other]));
    const near = graph.edges.filter(({ parent, child }) => parent === member.id || child === member.id);
    const text = JSON.stringify([
      key,
      near,
      near.map(({ parent, child }) => [byNumber.get(parent)?.name, byNumber.get(child)?.name]),
    ]);
    if (text === drawnEdges) return;
    drawnEdges = text;
    const list = (heading: string, side: 'parent' | 'child'): HTMLElement | null => {
      const items = near
        .filter((edge) => edge[side] === member.id)
        .flatMap((edge) => {
          const other = byNumber.get(side === 'parent' ? edge.child : edge.parent);
          return other === undefined ? [] : [edgeItem(edge, other, choose)];
        });
      return items.length === 0
        ? null
        : h('div', {}, h('h3', {}, heading), h('ul', { class: 'edges' }, ...items));
    };
    fill(edges, list('Used by', 'child'), list('Uses', 'parent'));
  };

  const show = (): void => {
    const member = latest?.graph.members.find((candidate) => keyOf(candidate) === key);
    if (latest === null || member === undefined) {
      panel.hidden = true;
      return;
    }
    panel.hidden = false;
    const rows = rowsOf(member, info, latest);
    const kept = [...properties.querySelectorAll('dd')];
    const names = [...properties.querySelectorAll('dt')].map((name) => name.textContent);
    if (JSON.stringify(names) === JSON.stringify(rows.map(([name]) => shown(name)))) {
      for (const [index, [, value]] of rows.entries()) if (kept[index]) setText(kept[index], shown(value));
    } else {
      fill(
        properties,
        ...rows.flatMap(([name, value]) => [
          h('dt', {}, shown(name)),
          h('dd', { dir: 'auto' }, shown(value)),
        ]),
      );
    }
    showEdges(member, latest);
  };

  const askForInfo = async (name: string): Promise<void> => {
    const asked = key;
    const nodes = await client.queryNamedBlockNodes({ flat: true });
    if (key !== asked) return;
    info = nodes.find((node) => node['node-name'] === name) ?? null;
    show();
  };

  close.addEventListener('click', closed);
  panel.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') closed();
  });

  return {
    choose: (chosen) => {
      key = chosen;
      info = null;
      drawnEdges = '';
      const member = latest?.graph.members.find((candidate) => keyOf(candidate) === key);
      if (member === undefined) {
        panel.hidden = true;
        return;
      }
      fill(title, h('bdi', {}, member.kind === 'user' ? 'Unnamed user' : shown(member.name)));
      fill(actions, ...actionsOf(member));
      show();
      title.focus();
      if (member.kind === 'node') askForInfo(member.name).catch(tellError);
    },
    update: (snapshot) => {
      latest = snapshot;
      if (key !== null) show();
    },
  };
}
