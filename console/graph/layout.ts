/**
 * Where the members of the block graph stand. Each connected piece is laid out by dagre, users above what they use, and
 * is remembered: a change of one disk's chain costs the layout of that chain, and leaves all others as they are. The
 * pieces are then set in rows.
 *
 * Here: numbers. Not here: the elements (view.ts).
 */

import { Graph, layout } from '@dagrejs/dagre';

export interface Link {
  readonly key: string;
  readonly from: string;
  readonly to: string;
}

export interface Place {
  /** Of the upper left corner. */
  readonly x: number;
  readonly y: number;
}

export interface LinkPlace {
  readonly points: readonly Place[];
  /** The middle of its label. */
  readonly label: Place;
}

export interface GraphLayout {
  readonly width: number;
  readonly height: number;
  readonly boxes: ReadonlyMap<string, Place>;
  readonly links: ReadonlyMap<string, LinkPlace>;
}

export const BOX_WIDTH = 184;
export const BOX_HEIGHT = 56;
export const LABEL_WIDTH = 84;
export const LABEL_HEIGHT = 18;
const GAP = 28;
/** Members from which on a piece is laid out in a third of the time, with a few more crossings. */
const LARGE = 60;

/** Connected members and their links. */
interface Piece {
  readonly boxes: string[];
  readonly links: Link[];
}

/** The pieces of the graph, in the order of their first member. */
function piecesOf(boxes: readonly string[], links: readonly Link[]): Piece[] {
  const leaders = new Map(boxes.map((box) => [box, box]));
  const leaderOf = (box: string): string => {
    let at = box;
    for (let up = leaders.get(at); up !== undefined && up !== at; up = leaders.get(at)) at = up;
    leaders.set(box, at);
    return at;
  };
  for (const { from, to } of links) leaders.set(leaderOf(from), leaderOf(to));
  const pieces = new Map<string, Piece>();
  const pieceOf = (box: string): Piece => {
    const leader = leaderOf(box);
    const piece = pieces.get(leader) ?? { boxes: [], links: [] };
    pieces.set(leader, piece);
    return piece;
  };
  for (const box of boxes) pieceOf(box).boxes.push(box);
  for (const link of links) pieceOf(link.from).links.push(link);
  return [...pieces.values()];
}

function layOutPiece({ boxes, links }: Piece): GraphLayout {
  const graph = new Graph({ multigraph: true });
  const isLarge = boxes.length > LARGE;
  graph.setGraph({
    ...{ rankdir: 'TB', nodesep: GAP, edgesep: 16, ranksep: 34, marginx: 2, marginy: 2 },
    ranker: isLarge ? 'tight-tree' : 'network-simplex',
  });
  for (const box of boxes) graph.setNode(box, { width: BOX_WIDTH, height: BOX_HEIGHT });
  for (const { key, from, to } of links)
    graph.setEdge(from, to, { width: LABEL_WIDTH, height: LABEL_HEIGHT, labelpos: 'c' }, key);
  layout(graph, { disableOptimalOrderHeuristic: isLarge });
  const size = graph.graph() as { readonly width?: number; readonly height?: number };
  return {
    width: size.width ?? BOX_WIDTH,
    height: size.height ?? BOX_HEIGHT,
    boxes: new Map(
      boxes.map((box) => {
        const { x = 0, y = 0 } = graph.node(box) as Partial<Place>;
        return [box, { x: x - BOX_WIDTH / 2, y: y - BOX_HEIGHT / 2 }];
      }),
    ),
    links: new Map(
      links.map(({ key, from, to }) => {
        const edge = graph.edge(from, to, key) as Partial<Place> & { readonly points?: readonly Place[] };
        return [key, { points: edge.points ?? [], label: { x: edge.x ?? 0, y: edge.y ?? 0 } }];
      }),
    ),
  };
}

const moved = ({ x, y }: Place, by: Place): Place => ({ x: x + by.x, y: y + by.y });

/** Sets pieces in rows, tall ones first. */
function packed(pieces: readonly GraphLayout[], rowWidth: number): GraphLayout {
  const boxes = new Map<string, Place>();
  const links = new Map<string, LinkPlace>();
  let [x, y, rowHeight, width] = [0, 0, 0, 0];
  for (const piece of pieces.toSorted((one, other) => other.height - one.height)) {
    if (x > 0 && x + piece.width > rowWidth) [x, y, rowHeight] = [0, y + rowHeight + GAP, 0];
    const corner = { x, y };
    for (const [key, place] of piece.boxes) boxes.set(key, moved(place, corner));
    for (const [key, { points, label }] of piece.links)
      links.set(key, { points: points.map((point) => moved(point, corner)), label: moved(label, corner) });
    width = Math.max(width, x + piece.width);
    rowHeight = Math.max(rowHeight, piece.height);
    x += piece.width + GAP;
  }
  return { width, height: y + rowHeight, boxes, links };
}

/** Lays graphs out, one version after another. Links are between boxes; several between the same two have keys of their own. */
export function createLayouter(): (
  boxes: readonly string[],
  links: readonly Link[],
  rowWidth: number,
) => GraphLayout {
  let known = new Map<string, GraphLayout>();
  return (boxes, links, rowWidth) => {
    const used = new Map<string, GraphLayout>();
    const pieces = piecesOf(boxes, links).map((piece) => {
      const signature = JSON.stringify([
        piece.boxes,
        piece.links.map(({ key, from, to }) => [key, from, to]),
      ]);
      const result = known.get(signature) ?? layOutPiece(piece);
      used.set(signature, result);
      return result;
    });
    known = used;
    return packed(pieces, rowWidth);
  };
}
