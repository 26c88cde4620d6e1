/**
 * Writes dist/site/: guides, examples, the reference of QMP, of drivers and of programs, as HTML that needs nothing from
 * elsewhere. `npm run docs` runs it.
 */

import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { loadModel, type Model } from '../../schema/generator/model.ts';
import { PACKAGE_VERSION } from '../../src/qmp/version.ts';
import { imageFormats } from '../generator/choices.ts';
import { PROGRAMS } from '../generator/programs.ts';
import { collectExamples } from './examples.ts';
import { code, escaped, fileOf, heading, inline, type Page } from './html.ts';
import { documentPage } from './markdown.ts';
import { driverNames, driversPage, programPages, programPath } from './programs.ts';
import { modulePath, placeOf, referencePages } from './reference.ts';

const root = path.resolve(import.meta.dirname, '../../..');
const site = path.join(root, 'dist/site');

interface Source {
  readonly path: string;
  readonly text: string;
}

function documentsOf(folder: string): Source[] {
  return readdirSync(path.join(root, 'docs', folder))
    .filter((name) => name.endsWith('.md'))
    .sort()
    .map((name) => ({
      path: `${folder}/${path.basename(name, '.md')}.html`,
      text: readFileSync(path.join(root, 'docs', folder, name), 'utf8'),
    }));
}

function list(items: readonly (readonly [place: string, html: string, text?: string])[]): string {
  const lines = items.map(
    ([place, html, text]) =>
      `<li><a href="${place}">${html}</a>${text === undefined ? '' : `: ${inline(text)}`}</li>`,
  );
  return `<ul>\n${lines.join('\n')}\n</ul>\n`;
}

function indexPage(guides: readonly Page[], examples: readonly Page[], model: Model): Page {
  const body =
    `${heading(1, 'qblockd', 'qblockd')}<p>Version ${escaped(PACKAGE_VERSION)}. A block-storage daemon that speaks QMP, and the image tools that belong to it.</p>\n` +
    heading(2, 'guides', 'Guides') +
    list(guides.map(({ path: place, title }) => [place, escaped(title)])) +
    heading(2, 'reference', 'QMP') +
    list(
      model.modules.map(({ name, title, description }) => [modulePath(name), escaped(title), description]),
    ) +
    heading(2, 'examples', 'Examples of QMP') +
    list(examples.map(({ path: place, title }) => [place, escaped(title)])) +
    heading(2, 'drivers', 'Drivers') +
    list([['drivers.html', 'Block drivers', 'options of each, and of images that are made']]) +
    heading(2, 'tools', 'Programs') +
    list(PROGRAMS.map(({ name, summary }) => [programPath(name), code(name), summary]));
  return { path: 'index.html', title: 'Documentation', body };
}

/** Every name with a link, and a field that leaves those that hold what is typed. */
function namesPage(model: Model): Page {
  const names = [
    ...model.commands.map(({ name }) => [name, placeOf(model, name)] as const),
    ...model.events.map(({ name }) => [name, placeOf(model, name)] as const),
    ...[...model.types.values()]
      .filter((type) => !type.implicit)
      .map(({ name }) => [name, placeOf(model, name)] as const),
    ...driverNames().map((name) => [`driver ${name}`, `drivers.html#${name}`] as const),
    ...PROGRAMS.flatMap(({ name, commands }) => [
      [name, programPath(name)] as const,
      ...commands.map(
        (command) => [`${name} ${command.name}`, `${programPath(name)}#${command.name}`] as const,
      ),
    ]),
  ].sort(([a], [b]) => a.localeCompare(b));
  const items = names.map(([name, place]) => `<li><a href="${place}">${escaped(name)}</a></li>`).join('\n');
  const body = `${heading(1, 'names', 'Names')}<p><input id="wanted" type="search" placeholder="commands, events, types, drivers, programs" aria-label="Search" autofocus></p>
<ul class="columns" id="all">
${items}
</ul>
<script>
const all = [...document.querySelectorAll('#all li')];
document.getElementById('wanted').addEventListener('input', ({ target }) => {
  const words = target.value.toLowerCase().split(/\\s+/);
  for (const item of all) item.hidden = !words.every((word) => item.textContent.toLowerCase().includes(word));
});
</script>
`;
  return { path: 'names.html', title: 'Names', body };
}

const model = loadModel(path.join(root, 'schema'));
const guides = documentsOf('guides');
const examples = documentsOf('examples');
const guidePages = guides.map((source) => documentPage(source.path, source.text));
const examplePages = examples.map((source) => documentPage(source.path, source.text));
const shown = collectExamples([...examples, ...guides].map(({ text }) => text));
const pages = [
  indexPage(guidePages, examplePages, model),
  namesPage(model),
  ...guidePages,
  ...examplePages,
  ...referencePages(model, shown),
  driversPage(await imageFormats()),
  ...programPages(),
];
rmSync(site, { recursive: true, force: true });
for (const page of pages) {
  const file = path.join(site, page.path);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, fileOf(page));
}
process.stdout.write(`${pages.length} pages: ${path.join(site, 'index.html')}\n`);
