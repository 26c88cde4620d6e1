/** The site that `npm run docs` makes: complete, every link leads somewhere, and nothing comes from elsewhere. */

import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { beforeAll, expect, test } from 'vitest';
import { PROGRAMS } from '../../docs/generator/programs.ts';
import { placeOf } from '../../docs/site/reference.ts';
import { loadModel } from '../../schema/generator/model.ts';
import { repositoryRoot } from '../peers/daemons.ts';

const site = path.join(repositoryRoot, 'dist/site');
const pages = new Map<string, string>();

beforeAll(() => {
  execFileSync(process.execPath, [path.join(repositoryRoot, 'dist/docs/site/main.js')]);
  for (const name of readdirSync(site, { recursive: true, encoding: 'utf8' })) {
    if (name.endsWith('.html')) pages.set(name, readFileSync(path.join(site, name), 'utf8'));
  }
});

const idsOf = (html: string): string[] => [...html.matchAll(/ id="([^"]+)"/g)].map((match) => match[1] ?? '');

/** Links of a page that lead nowhere. */
function brokenLinks(name: string, html: string): string[] {
  return [...html.matchAll(/\b(?:href|src|action)="([^"]*)"/g)]
    .map((match) => match[1] ?? '')
    .filter((link) => {
      const [place = '', id] = link.split('#');
      const target = place === '' ? name : path.join(path.dirname(name), place);
      const page = pages.get(target);
      return page === undefined || (id !== undefined && !idsOf(page).includes(id));
    });
}

test('every link leads to a page of the site, and to a place on it', () => {
  expect(pages.size).toBeGreaterThan(40);
  for (const [name, html] of pages) expect([name, brokenLinks(name, html)]).toEqual([name, []]);
});

test('a link that leads nowhere is found', () => {
  expect(brokenLinks('index.html', '<a href="nowhere.html">x</a><a href="#nowhere">y</a>')).toEqual([
    'nowhere.html',
    '#nowhere',
  ]);
  expect(brokenLinks('index.html', '<img src="https://example.org/x.png">')).toEqual([
    'https://example.org/x.png',
  ]);
});

test('nothing is loaded from another address, and no place has the name of another', () => {
  for (const [name, html] of pages) {
    expect(html).not.toMatch(/<(?:link|img|iframe|script)\b[^>]*(?:href|src)=|@import|url\(/);
    const ids = idsOf(html);
    expect([name, ids.filter((id, index) => ids.indexOf(id) !== index)]).toEqual([name, []]);
  }
});

test('commands, events, types, options of drivers and programs are all there', () => {
  const model = loadModel(path.join(repositoryRoot, 'schema'));
  for (const thing of [...model.commands, ...model.events, ...model.types.values()]) {
    if ('implicit' in thing && thing.implicit) continue;
    const [page = '', id = ''] = placeOf(model, thing.name)?.split('#') ?? [];
    expect(idsOf(pages.get(page) ?? '')).toContain(id);
  }
  for (const { name, commands } of PROGRAMS) {
    const ids = idsOf(pages.get(`programs/${name}.html`) ?? '');
    for (const command of commands) expect(ids).toContain(command.name);
  }
  expect(pages.get('drivers.html')).toContain('<code>encrypt.key-secret</code>');
  expect(pages.get('reference/job.html')).toContain('Job not found');
});

test('documents in Markdown name files that are there', () => {
  for (const name of ['guides', 'examples'].flatMap((folder) =>
    readdirSync(path.join(repositoryRoot, 'docs', folder)).map((file) => path.join('docs', folder, file)),
  )) {
    const text = readFileSync(path.join(repositoryRoot, name), 'utf8');
    for (const [, link = ''] of text.matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g))
      expect([name, link, existsSync(path.join(repositoryRoot, path.dirname(name), link))]).toEqual([
        name,
        link,
        true,
      ]);
  }
});
