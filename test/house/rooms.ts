/**
 * The rules of the house that look at more than one file: rooms of a folder and the direction between them, circles of
 * imports, full folders. house.test.ts applies them to the tree and shows that each of them can fail.
 */

import { importsOf, type SourceFile } from './rules.ts';

export interface TreeRule {
  readonly name: string;
  /** Complaints about the tree; empty when it keeps the rule. */
  readonly check: (files: readonly SourceFile[]) => string[];
}

/** Rooms of a folder, top first: a room imports from those below it only. '.' are the files in the folder itself. */
export const ROOMS: Readonly<Record<string, readonly string[]>> = {
  'src/block': ['query', 'copy', 'open', '.', 'io', 'graph', 'bitmaps', 'throttle', 'contract'],
  'src/nbd': ['server', 'client', 'protocol'],
  'src/drivers/formats/qcow2': [
    ...['.', 'open', 'change', 'check', 'bitmaps', 'snapshots', 'data', 'metadata', 'layout'],
  ],
};

/** Files whose types everything in their folder may name: the records that all rooms work on. */
const NAMED_BY_ALL: readonly string[] = ['src/block/graph/node.ts', 'src/block/layer.ts'];

/** More files than this in one folder, and a newcomer has to scroll: then it has become two rooms. */
const MAX_FILES = 18;

interface Import {
  readonly from: string;
  readonly to: string;
  readonly typeOnly: boolean;
}

function importsOfAll(files: readonly SourceFile[]): Import[] {
  return files.flatMap(({ path, text }) =>
    importsOf(text)
      .filter(({ specifier }) => specifier.startsWith('.'))
      .map(({ specifier, typeOnly }) => ({
        from: path,
        to: new URL(specifier, `file:///${path}`).pathname.slice(1),
        typeOnly,
      })),
  );
}

function roomOf(folder: string, path: string): string | null {
  if (!path.startsWith(`${folder}/`)) return null;
  const rest = path.slice(folder.length + 1);
  return rest.includes('/') ? rest.slice(0, rest.indexOf('/')) : '.';
}

function roomComplaint(folder: string, rooms: readonly string[], edge: Import): string | null {
  const from = roomOf(folder, edge.from);
  const to = roomOf(folder, edge.to);
  if (from === null || to === null || from === to) return null;
  for (const room of [from, to]) {
    if (!rooms.includes(room)) return `${folder}/${room} is no room of the list in test/house/rooms.ts`;
  }
  if (edge.typeOnly && NAMED_BY_ALL.includes(edge.to)) return null;
  return rooms.indexOf(from) < rooms.indexOf(to)
    ? null
    : `${edge.from} imports ${edge.to}, which is above it`;
}

/** One circle of value imports below each start, as the files on it; none where there is none. */
function circlesOf(edges: readonly Import[]): string[][] {
  const next = new Map<string, string[]>();
  for (const { from, to, typeOnly } of edges) if (!typeOnly) next.set(from, [...(next.get(from) ?? []), to]);
  const done = new Set<string>();
  const circles: string[][] = [];
  const visit = (file: string, path: readonly string[]): void => {
    const at = path.indexOf(file);
    if (at >= 0) {
      circles.push([...path.slice(at), file]);
      return;
    }
    if (done.has(file)) return;
    for (const to of next.get(file) ?? []) visit(to, [...path, file]);
    done.add(file);
  };
  for (const file of next.keys()) visit(file, []);
  return circles;
}

const isSource = ({ path }: SourceFile): boolean =>
  path.startsWith('src/') || path.startsWith('daemon/') || path.startsWith('console/');

export const TREE_RULES: readonly TreeRule[] = [
  {
    name: 'between the rooms of a folder imports go one way',
    check: (files) => {
      const edges = importsOfAll(files);
      return Object.entries(ROOMS).flatMap(([folder, rooms]) =>
        edges.map((edge) => roomComplaint(folder, rooms, edge)).filter((complaint) => complaint !== null),
      );
    },
  },
  {
    name: 'no circles of imports of values',
    check: (files) => circlesOf(importsOfAll(files.filter(isSource))).map((circle) => circle.join(' -> ')),
  },
  {
    name: 'a folder holds few files',
    check: (files) => {
      const counts = new Map<string, number>();
      for (const { path } of files.filter(isSource)) {
        const folder = path.slice(0, path.lastIndexOf('/'));
        counts.set(folder, (counts.get(folder) ?? 0) + 1);
      }
      return [...counts]
        .filter(([, count]) => count > MAX_FILES)
        .map(([folder, count]) => `${folder} holds ${count} files, at most ${MAX_FILES}`);
    },
  },
];
