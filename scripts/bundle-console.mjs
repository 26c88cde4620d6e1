// Bundles the console into dist/console/: one page with its style and its script, and the policy that lets a browser run
// those two and nothing else. Run by scripts/build.mjs, after tsc has checked the types.
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'rolldown';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const source = path.join(root, 'console');
const outDir = path.join(root, 'dist/console');

async function bundleScript() {
  const { output } = await build({
    cwd: root,
    input: 'console/main.ts',
    platform: 'browser',
    transform: { target: 'es2022' },
    write: false,
    output: { format: 'esm', codeSplitting: false, minify: true, comments: false },
  });
  const [chunk] = output.filter(({ type }) => type === 'chunk');
  // What would end the element, or begin a comment in it, stands in strings only, where escapes mean the same.
  return chunk.code.trim().replaceAll('</script', '<\\/script').replaceAll('<!--', '<\\!--');
}

function bundleStyle() {
  const sheets = readdirSync(path.join(source, 'style'))
    .sort()
    .map((name) => path.join(source, 'style', name));
  const files = [path.join(root, 'node_modules/uplot/dist/uPlot.min.css'), ...sheets];
  return files
    .map((file) => readFileSync(file, 'utf8').trim())
    .join('\n')
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/\n\s*/g, '\n');
}

/** As a source of Content-Security-Policy. */
const hashOf = (text) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

/** A whole file or none, for a daemon that starts meanwhile. */
function put(name, text) {
  const file = path.join(outDir, name);
  writeFileSync(`${file}.new`, text);
  renameSync(`${file}.new`, file);
}

const script = await bundleScript();
const style = bundleStyle();
const page = readFileSync(path.join(source, 'page.html'), 'utf8')
  .replace('@STYLE@', () => style)
  .replace('@SCRIPT@', () => script);
const policy = [
  "default-src 'none'",
  `script-src ${hashOf(script)}`,
  `style-src ${hashOf(style)}`,
  "connect-src 'self'",
  'img-src data:',
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
];
mkdirSync(outDir, { recursive: true });
put('console.html', page);
put('console.csp', policy.join('; '));
