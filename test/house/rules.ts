/**
 * The rules of the house, as functions over source text. house.test.ts applies them to the tree and shows that each
 * of them can fail.
 */

/** A source file: path relative to the root of the project, and text. */
export interface SourceFile {
  readonly path: string;
  readonly text: string;
}

export interface Rule {
  readonly name: string;
  /** Complaints about the file; empty when it keeps the rule. */
  readonly check: (file: SourceFile) => string[];
}

/** The floors of the house, top first. A file may import from its own floor and from those below it. */
export const FLOORS = [
  ...[
    'daemon',
    'src/tools',
    'src/commands',
    'src/qmp',
    'src/chardev',
    'src/exports',
    'src/jobs',
    'src/drivers',
    'src/virtio',
  ],
  // The NBD protocol is below the drivers: the server knows nodes as backends only, the client knows none.
  ...['src/nbd', 'src/block', 'src/objects', 'src/coroutine', 'src/aio', 'src/errors'],
  // The console is the page that the daemon serves: all it knows of this house is the client.
  'console',
  // The client is a program of its own: it knows the schema and nothing else of this house.
  'client',
] as const;

/** Floors that may import values, not only types, from the files generated out of the schema. */
const VALUES_OF_SCHEMA: readonly string[] = [
  'daemon',
  'src/tools',
  'src/commands',
  'src/qmp',
  'console',
  'client',
];

const MAX_LINES = 450;
const MAX_LINES_OF_TESTS = 600;

/** Files longer than the limit that are tolerated, with the length they may not exceed. Only ever shrink these. */
const LONG_FILES: Readonly<Record<string, number>> = {};

function floorOf(path: string): string | null {
  return FLOORS.find((floor) => path.startsWith(`${floor}/`)) ?? null;
}

/** The same text with comments and the insides of strings blanked; line breaks stay. */
export function codeOnly(text: string): string {
  const pattern = /\/\*[\s\S]*?\*\/|\/\/[^\n]*|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`/g;
  return text.replace(pattern, (match) => match.replace(/[^\n]/g, ' '));
}

/** Imports and re-exports of a file: the module named, and whether only types come from it. */
export function importsOf(text: string): { readonly specifier: string; readonly typeOnly: boolean }[] {
  const withoutComments = text.replace(/\/\*[\s\S]*?\*\/|^\s*\/\/[^\n]*/gm, '');
  const pattern =
    /^\s*(?:import|export)\s(?:(type)\s)?[^'";]*?from\s+['"]([^'"]+)['"]|^\s*import\s+['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]/gm;
  return [...withoutComments.matchAll(pattern)].map((match) => ({
    specifier: match[2] ?? match[3] ?? match[4] ?? '',
    typeOnly: match[1] === 'type',
  }));
}

/** The path, relative to the root, that a relative import names. */
function resolveImport(fromPath: string, specifier: string): string {
  return new URL(specifier, `file:///${fromPath}`).pathname.slice(1);
}

function importComplaint(file: SourceFile, target: string, typeOnly: boolean): string | null {
  const from = floorOf(file.path);
  if (from === null) return null;
  if (target.startsWith('schema/generated/')) {
    return typeOnly || VALUES_OF_SCHEMA.includes(from)
      ? null
      : `imports values, not only types, from ${target}`;
  }
  const to = floorOf(target);
  if (to === null) return `imports ${target}, which is on no floor`;
  const floors: readonly string[] = FLOORS;
  return floors.indexOf(to) >= floors.indexOf(from) ? null : `imports ${target}, which is above ${from}`;
}

const layering: Rule = {
  name: 'imports go down',
  check: (file) =>
    importsOf(file.text)
      .filter(({ specifier }) => specifier.startsWith('.'))
      .map(({ specifier, typeOnly }) => importComplaint(file, resolveImport(file.path, specifier), typeOnly))
      .filter((complaint) => complaint !== null),
};

/** A rule about lines: complains where the pattern matches code (not comments, not strings). */
function lineRule(name: string, pattern: RegExp, applies: (path: string) => boolean): Rule {
  return {
    name,
    check: ({ path, text }) => {
      if (!applies(path)) return [];
      const lines = codeOnly(text).split('\n');
      return lines.flatMap((line, index) =>
        pattern.test(line) ? [`line ${index + 1}: ${text.split('\n')[index]?.trim()}`] : [],
      );
    },
  };
}

const everywhere = (): boolean => true;
const aboveAio = (path: string): boolean => floorOf(path) !== null && !/^src\/(aio|errors)\//.test(path);

export const RULES: readonly Rule[] = [
  layering,
  {
    name: 'koffi is imported in src/aio only',
    check: ({ path, text }) =>
      !path.startsWith('src/aio/') && importsOf(text).some(({ specifier }) => specifier === 'koffi')
        ? ['imports koffi']
        : [],
  },
  lineRule('no default exports', /\bexport\s+default\b/, (path) => !path.endsWith('.config.ts')),
  lineRule('no any', /(?:[:<,|&(]\s*|\bas\s+|=>\s*)any\b(?!\s*[:?(])/, (path) => path !== 'src/aio/ffi.ts'),
  lineRule('no mutable variables at module level', /^(?:export\s+)?(?:let|var)\s/, aboveAio),
  lineRule(
    'no mutable collections at module level',
    /^(?:export\s+)?const\s[^=]*=\s*(?:new (?:Map|Set|WeakMap|WeakSet)\b[^(]*\(\s*\)|\[\s*\]|\{\s*\})\s*;/,
    aboveAio,
  ),
  lineRule('no enums', /^\s*(?:export\s+)?(?:declare\s+)?(?:const\s+)?enum\s/, everywhere),
  {
    name: 'no barrel files',
    check: ({ path }) => (/(^|\/)index\.(ts|mjs)$/.test(path) ? ['import the defining file instead'] : []),
  },
  {
    name: 'every module starts with a comment that says what lives there',
    check: ({ text }) => (/^(?:#![^\n]*\n)?(?:\/\*\*|\/\/)/.test(text) ? [] : ['no header comment']),
  },
  {
    name: 'relative imports name the .ts file',
    check: ({ text }) =>
      importsOf(text)
        .filter(
          ({ specifier }) =>
            specifier.startsWith('.') && !/\.(ts|json)$|\/generated\/.*\.js$/.test(specifier),
        )
        .map(({ specifier }) => specifier),
  },
  {
    name: 'files stay short',
    check: ({ path, text }) => {
      const lines = text.split('\n').length - 1;
      const limit = LONG_FILES[path] ?? (path.startsWith('test/') ? MAX_LINES_OF_TESTS : MAX_LINES);
      return lines > limit ? [`${lines} lines, at most ${limit}`] : [];
    },
  },
];
