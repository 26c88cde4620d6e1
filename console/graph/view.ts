/**
 * The drawing of the block graph: a button a member over an SVG of links. Elements are kept from one look to the next
 * and changed only where something has changed, so that focus and scrolling stay, and nothing is laid out for nothing.
 *
 * By keyboard the graph is one stop; arrows go to the nearest member in their direction.
 */

import type { Snapshot } from '../data/feed.ts';
import { shown } from '../data/format.ts';
import { h, setText, svg } from '../page/dom.ts';
import { BOX_WIDTH, createLayouter, type GraphLayout, LABEL_WIDTH, type LinkPlace } from './layout.ts';
import { type Drawn, type DrawnLink, type DrawnMember, drawnOf, signsOf } from './members.ts';

export interface GraphView {
  readonly element: HTMLElement;
  show(snapshot: Snapshot): void;
  /** Marks a member as the one that is looked at; null: none. */
  select(key: string | null): void;
  /** Changes how large it is drawn: 1 is life size. */
  zoom(factor: number): void;
  fit(): void;
}

interface Box {
  readonly button: HTMLButtonElement;
  readonly title: HTMLElement;
  readonly line: HTMLElement;
  readonly marks: HTMLElement;
  place: { readonly x: number; readonly y: number };
}

const MIN_ZOOM = 0.4;
const MAX_ZOOM = 1.5;

/** A smooth line through the points. */
function pathOf({ points }: LinkPlace): string {
  const [first, ...rest] = points;
  if (first === undefined) return '';
  const at = (value: number): string => value.toFixed(1);
  let text = `M${at(first.x)} ${at(first.y)}`;
  let before = first;
  for (const point of rest) {
    const middle = (before.y + point.y) / 2;
    text += `C${at(before.x)} ${at(middle)} ${at(point.x)} ${at(middle)} ${at(point.x)} ${at(point.y)}`;
    before = point;
  }
  return text;
}

function linkElement({ edge }: DrawnLink, place: LinkPlace): SVGGElement {
  const kind = edge.roles.includes('cow') ? 'cow' : edge.roles.includes('filtered') ? 'filtered' : 'plain';
  const signs = signsOf(edge.perm);
  const name = shown(edge.name);
  const short = name.length > 9 ? `${name.slice(0, 8)}…` : name;
  const label = svg(
    'text',
    { x: place.label.x, y: place.label.y + 4, class: 'link-label', 'text-anchor': 'middle' },
    svg('tspan', {}, short),
    svg('tspan', { class: 'link-perm', dx: 6 }, signs === '' ? '–' : signs),
  );
  const about = `${name}: ${edge.roles.join(', ') || 'user'}; takes ${edge.perm.join(', ') || 'nothing'}; shares ${edge['shared-perm'].join(', ') || 'nothing'}`;
  return svg(
    'g',
    { class: `link link-${kind}` },
    svg('title', {}, about),
    svg('path', { d: pathOf(place), 'marker-end': 'url(#arrow)' }),
    svg('rect', {
      ...{ x: place.label.x - LABEL_WIDTH / 2, y: place.label.y - 9, width: LABEL_WIDTH, height: 18, rx: 9 },
      class: 'link-back',
    }),
    label,
  );
}

/** The member nearest to `from` in the direction (dx, dy); null: there is none. */
function nearest(boxes: ReadonlyMap<string, Box>, from: Box, dx: number, dy: number): Box | null {
  let best: { readonly box: Box; readonly distance: number } | null = null;
  for (const box of boxes.values()) {
    const along = (box.place.x - from.place.x) * dx + (box.place.y - from.place.y) * dy;
    const across = Math.abs((box.place.x - from.place.x) * dy) + Math.abs((box.place.y - from.place.y) * dx);
    if (along < 1) continue;
    const distance = along + across * 3;
    if (best === null || distance < best.distance) best = { box, distance };
  }
  return best?.box ?? null;
}

const ARROWS: Readonly<Record<string, readonly [number, number]>> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

export function createGraphView(choose: (key: string) => void): GraphView {
  const boxes = new Map<string, Box>();
  const lay = createLayouter();
  const linkLayer = svg('g');
  const drawing = svg(
    'svg',
    { class: 'links', 'aria-hidden': 'true' },
    svg(
      'defs',
      {},
      svg(
        'marker',
        {
          id: 'arrow',
          viewBox: '0 0 8 8',
          refX: 7,
          refY: 4,
          markerWidth: 7,
          markerHeight: 7,
          orient: 'auto',
        },
        svg('path', { d: 'M0 0.5 8 4 0 7.5z' }),
      ),
    ),
    linkLayer,
  );
  const list = h('ul', { class: 'boxes' });
  const canvas = h('div', { class: 'canvas' }, drawing, list);
  const sizer = h('div', { class: 'sizer' }, canvas);
  const element = h('div', { class: 'graph-scroll', tabindex: -1 }, sizer);
  let signature = '';
  let current: GraphLayout | null = null;
  let scale = 1;
  let autoFit = true;
  let selected: string | null = null;
  let entryKey = '';
  let lastDrawn: Drawn = { members: [], links: [] };

  const applyZoom = (): void => {
    if (current === null) return;
    canvas.style.transform = `scale(${scale})`;
    sizer.style.width = `${Math.ceil(current.width * scale)}px`;
    sizer.style.height = `${Math.ceil(current.height * scale)}px`;
  };

  const fitted = (): number => {
    const room = element.clientWidth - 2;
    if (current === null || current.width <= 0 || room <= 0) return 1;
    return Math.min(1, Math.max(0.7, room / current.width));
  };

  const updateBox = (box: Box, drawn: DrawnMember): void => {
    const { member, title, line, marks } = drawn;
    setText(box.title, title);
    setText(box.line, line);
    setText(box.marks, marks.join(' · '));
    const busy = (member['in-flight'] ?? 0) > 0;
    const name = `box box-${member.kind}${busy ? ' busy' : ''}`;
    if (box.button.className !== name) box.button.className = name;
    const label = `${member.kind} ${title}, ${line}${marks.length > 0 ? `, ${marks.join(', ')}` : ''}`;
    if (box.button.getAttribute('aria-label') !== label) {
      box.button.setAttribute('aria-label', label);
      box.button.title = member.kind === 'node' ? `${title}\n${shown(member.filename ?? '')}` : title;
    }
  };

  const makeBox = (key: string): Box => {
    const title = h('bdi', { class: 'box-title' });
    const line = h('span', { class: 'box-line' });
    const marks = h('span', { class: 'box-marks' });
    const button = h(
      'button',
      { type: 'button', tabindex: -1, 'data-key': key, on: { click: () => choose(key) } },
      title,
      h('span', { class: 'box-row' }, line, marks),
    );
    list.append(h('li', {}, button));
    return { button, title, line, marks, place: { x: 0, y: 0 } };
  };

  const place = (layout: GraphLayout, links: readonly DrawnLink[]): void => {
    current = layout;
    for (const [key, at] of layout.boxes) {
      const box = boxes.get(key);
      if (box === undefined) continue;
      box.place = at;
      box.button.style.transform = `translate(${at.x}px, ${at.y}px)`;
    }
    canvas.style.width = `${layout.width}px`;
    canvas.style.height = `${layout.height}px`;
    drawing.setAttribute('width', String(Math.ceil(layout.width)));
    drawing.setAttribute('height', String(Math.ceil(layout.height)));
    linkLayer.replaceChildren(
      ...links.flatMap((link) => {
        const at = layout.links.get(link.key);
        return at === undefined ? [] : [linkElement(link, at)];
      }),
    );
    if (autoFit) scale = fitted();
    applyZoom();
  };

  /** One member is the way in by keyboard: the one that was there last. */
  const keepEntry = (): void => {
    const entry = boxes.get(entryKey) ?? [...boxes.values()][0];
    for (const box of boxes.values()) {
      const index = box === entry ? 0 : -1;
      if (box.button.tabIndex !== index) box.button.tabIndex = index;
    }
  };

  const draw = (force: boolean): void => {
    const { members, links } = lastDrawn;
    const keys = new Set(members.map(({ key }) => key));
    for (const [key, box] of boxes) {
      if (keys.has(key)) continue;
      box.button.parentElement?.remove();
      boxes.delete(key);
    }
    for (const drawn of members) {
      const box = boxes.get(drawn.key) ?? makeBox(drawn.key);
      boxes.set(drawn.key, box);
      updateBox(box, drawn);
    }
    const structure = JSON.stringify([
      [...keys],
      links.map(({ key, edge }) => [key, edge.roles, edge.perm, edge['shared-perm']]),
    ]);
    if (force || structure !== signature) {
      signature = structure;
      const rowWidth = Math.max(BOX_WIDTH, element.clientWidth / (autoFit ? 1 : scale));
      place(lay([...keys], links, rowWidth), links);
    }
    keepEntry();
  };

  list.addEventListener('keydown', (event) => {
    const arrow = ARROWS[event.key];
    const at = boxes.get((event.target as HTMLElement).dataset.key ?? '');
    if (arrow === undefined || at === undefined) return;
    event.preventDefault();
    const next = nearest(boxes, at, arrow[0], arrow[1]);
    if (next === null) return;
    entryKey = next.button.dataset.key ?? '';
    keepEntry();
    next.button.focus();
    next.button.scrollIntoView({ block: 'nearest', inline: 'nearest' });
  });

  let width = 0;
  new ResizeObserver(() => {
    if (element.clientWidth === width || lastDrawn.members.length === 0) return;
    width = element.clientWidth;
    draw(true);
  }).observe(element);

  return {
    element,
    show: (snapshot) => {
      lastDrawn = drawnOf(snapshot);
      draw(false);
    },
    select: (key) => {
      if (selected !== null) boxes.get(selected)?.button.removeAttribute('aria-current');
      selected = key;
      if (key !== null) entryKey = key;
      if (key !== null) boxes.get(key)?.button.setAttribute('aria-current', 'true');
      keepEntry();
    },
    zoom: (factor) => {
      autoFit = false;
      scale = Math.min(MAX_ZOOM, Math.max(MIN_ZOOM, scale * factor));
      draw(true);
    },
    fit: () => {
      autoFit = true;
      draw(true);
    },
  };
}
