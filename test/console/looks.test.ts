/** How the console looks at what it is given: hostile texts stay text, small screens and both colours are fit for use. */

import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { hasPeer, requirePeer } from '../peers/requires.ts';
import {
  type Console,
  expectNoSidewaysScroll,
  launchBrowser,
  look,
  openConsole,
  startConsole,
} from './browser.ts';

const present = hasPeer('chromium');
let browser: Browser;
let it: Console;
const soon = { timeout: limitMs(30_000) };

const MARKUP = '<img src=x onerror=alert(1)>"\'><script>alert(2)</script>';
const TURNED = '\u202egpj.exe\u202c';
const ARABIC = 'قرص النظام';
const LONG = 'x'.repeat(2000);
const HOSTILE = [MARKUP, TURNED, ARABIC, LONG, 'a\u0000b\nc\u200bd'] as const;

beforeAll(async () => {
  if (!present) return;
  browser = await launchBrowser();
  it = await startConsole();
  const { client } = it;
  const size = 1 << 26;
  await client.blockdevAdd({ driver: 'null-co', 'node-name': 'a', size });
  await client.blockdevAdd({ driver: 'null-co', 'node-name': 'b', size });
  await client.nbdServerStart({ addr: { type: 'unix', data: { path: `${it.daemon.dir}/nbd` } } });
  await client.blockExportAdd({ type: 'nbd', id: 'e', 'node-name': 'a', name: MARKUP });
  // The driver is asked for it in the end: the name is shown, not opened.
  for (const name of [MARKUP, ARABIC, 'y'.repeat(1000)])
    await client.blockDirtyBitmapAdd({ node: 'a', name });
  await client.blockdevMirror({ 'job-id': 'm', device: 'a', target: 'b', sync: 'full', speed: 1 << 20 });
});
afterAll(async () => {
  if (!present) return;
  await browser.close();
  await it.stop();
});

/** As the page writes a stranger's text: what is not seen is spelled out. */
const spelled = (text: string): string =>
  text.replace(
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
    /[\u0000-\u001f\u200b\u202a-\u202e]/g,
    (one) => `<U+${one.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}>`,
  );

/** Puts hostile names in the place of harmless ones in all that the daemon sends. */
function withHostileNames(message: string): string {
  const names: Readonly<Record<string, string>> = {
    a: HOSTILE[0],
    b: HOSTILE[1],
    m: HOSTILE[2],
    e: HOSTILE[3],
  };
  return message
    .replace(
      /"(name|node-name|id|device|filename|type|driver|drv|status)": "([abme])"/g,
      (_whole, key, name) => {
        return `"${key}": ${JSON.stringify(names[name])}`;
      },
    )
    .replace('"package": "', `"package": "${MARKUP.replaceAll('"', '')}`)
    .replace(/"name": "root"/g, `"name": ${JSON.stringify(HOSTILE[4])}`);
}

/** Elements that only a text taken for markup could have made. */
const strangers = (page: Page): Promise<number> =>
  look<number>(
    page,
    "document.querySelectorAll('img, iframe, object, embed, script:not([type=module])').length",
  );

test('names of all kinds are text', async (context) => {
  requirePeer(context, 'chromium');
  const { page, complaints } = await openConsole(browser, it.url, { rewrite: withHostileNames });
  const titles = await page.locator('.box-title').allTextContents();
  for (const name of HOSTILE.slice(0, 4)) expect(titles).toContain(spelled(name));
  expect(await page.locator('.job-id').textContent()).toBe(ARABIC);
  expect(await page.locator('#version').textContent()).toContain('<img src=x');
  // A name that turns the direction of the line turns nothing beside it.
  expect(await look(page, "getComputedStyle(document.querySelector('.box-title')).unicodeBidi")).toBe(
    'isolate',
  );
  await page.locator('.box', { hasText: '<img' }).first().click();
  await page.locator('#inspector h2').getByText('<img src=x onerror').waitFor();
  expect(await page.locator('#charts-export option').allTextContents()).toContain(LONG);
  // Into forms, and out of them.
  await page.locator('#inspector').getByRole('button', { name: 'Export …' }).click();
  expect(await page.locator('dialog').getByLabel('node-name').inputValue()).toBe(MARKUP);
  await page.locator('dialog').getByRole('button', { name: 'Run' }).click();
  await page.locator('dialog').getByRole('alert').waitFor();
  await page.keyboard.press('Escape');
  expect(await strangers(page)).toBe(0);
  expect(complaints).toEqual([]);
  await page.close();
});

test('texts that a real daemon gives back', async (context) => {
  requirePeer(context, 'chromium');
  const { page, complaints } = await openConsole(browser, it.url, { width: 360, height: 740 });
  await page.locator('.box-node').first().click();
  await page.locator('#inspector dt').getByText(`Bitmap ${MARKUP}`).waitFor();
  await page.locator('#inspector').getByRole('button', { name: 'Close the details' }).click();
  for (const text of HOSTILE) {
    await page.fill(
      '#prompt-input',
      JSON.stringify({ execute: 'blockdev-del', arguments: { 'node-name': text } }),
    );
    await page.keyboard.press('Enter');
    const answer = page.locator('#prompt-log .answer').last().locator('pre');
    await expect.poll(() => answer.textContent(), soon).toContain(spelled(text));
    await expectNoSidewaysScroll(page);
  }
  await page.fill('#prompt-input', '<b>{');
  await page.keyboard.press('Enter');
  await page
    .locator('#prompt-log .answer-bad')
    .getByText('CommandNotFound')
    .or(page.locator('#prompt-log pre').getByText('bracket'))
    .first()
    .waitFor();
  expect(await strangers(page)).toBe(0);
  expect(complaints).toEqual([]);
  await page.close();
});

test('a string is never markup, whoever tries', async (context) => {
  requirePeer(context, 'chromium');
  const { page, complaints } = await openConsole(browser, it.url);
  const attempt = (code: string): Promise<string> =>
    look<string>(page, `(() => { try { ${code}; return 'done'; } catch (error) { return error.name; } })()`);
  expect(await attempt("document.body.innerHTML = '<b>x</b>'")).toBe('TypeError');
  expect(
    await attempt(
      "const s = document.createElement('script'); s.text = 'window.run = 1'; document.body.append(s)",
    ),
  ).toBe('TypeError');
  expect(await look(page, 'window.run')).toBe(undefined);
  await attempt("fetch('http://127.0.0.2:1/').catch(() => undefined)");
  // The policy was in force: it has complained of each.
  await expect
    .poll(() => complaints.filter((text) => text.startsWith('policy: connect-src')).length, soon)
    .toBe(1);
  await page.close();
});

describe('360 pixels', () => {
  test('nothing sticks out, in the page, the details and every form', async (context) => {
    requirePeer(context, 'chromium');
    for (const width of [360, 320]) {
      const { page, complaints } = await openConsole(browser, it.url, {
        width,
        height: 640,
        rewrite: withHostileNames,
      });
      await expectNoSidewaysScroll(page);
      const forms = page.locator('button[data-form]');
      for (let form = 0; form < (await forms.count()); form += 1) {
        await forms.nth(form).click();
        for (const more of await page.locator('dialog .more > summary').all()) await more.click();
        await expectNoSidewaysScroll(page);
        const [room, content] = await look<[number, number]>(
          page,
          "(() => { const d = document.querySelector('dialog .dialog-body'); return [d.clientWidth, d.scrollWidth]; })()",
        );
        expect(content).toBe(room);
        // What sends the form can be reached.
        expect(await page.locator('dialog').getByRole('button', { name: 'Run' }).isVisible()).toBe(true);
        await page.keyboard.press('Escape');
      }
      await page.locator('.box').first().click();
      await expectNoSidewaysScroll(page);
      expect(complaints).toEqual([]);
      await page.close();
    }
  });
});

/** Run in the page: names of controls, ids, headings, and the contrast of every text with what is behind it. */
const AUDIT = `(() => {
  const faults = [];
  const visible = (e) => e.checkVisibility() && e.getClientRects().length > 0;
  const say = (e, what) => faults.push(what + ': ' + e.outerHTML.slice(0, 100));
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) faults.push('twice: ' + id);
  for (const e of document.querySelectorAll('[aria-labelledby], [aria-describedby], [aria-controls], [for]'))
    for (const name of ['aria-labelledby', 'aria-describedby', 'aria-controls', 'for'])
      for (const id of (e.getAttribute(name) ?? '').split(' '))
        if (id !== '' && document.getElementById(id) === null) say(e, 'leads nowhere');
  for (const e of document.querySelectorAll('input, select, button, [role=progressbar], dialog, section')) {
    if (!visible(e)) continue;
    const by = document.getElementById(e.getAttribute('aria-labelledby') ?? '');
    const name = e.getAttribute('aria-label') || by?.textContent || e.labels?.[0]?.textContent || (e.matches('button') && e.textContent);
    if (!(name || '').trim()) say(e, 'no name');
    if (e.matches('button:not(.link-button), input, select') && Math.min(e.getBoundingClientRect().height, e.getBoundingClientRect().width) < 24) say(e, 'small');
  }
  let level = 0;
  for (const e of document.querySelectorAll('h1, h2, h3')) {
    if (!visible(e)) continue;
    if (Number(e.tagName[1]) > level + 1) say(e, 'a level is left out');
    level = Number(e.tagName[1]);
  }
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgba = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4); return 0.2126 * x + 0.7152 * y + 0.0722 * z; };
  let looked = 0;
  for (const e of document.querySelectorAll('body *')) {
    const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim() !== '');
    if (!hasText || !visible(e) || e.matches('option, script, style, noscript, title, svg *') || e.disabled) continue;
    let back = [255, 255, 255, 0];
    for (let at = e; at !== null && back[3] < 255; at = at.parentElement) back = rgba(getComputedStyle(at).backgroundColor);
    const [one, two] = [light(rgba(getComputedStyle(e).color)), light(back)];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    looked += 1;
    if (ratio < 4.5) say(e, 'contrast ' + ratio.toFixed(2));
  }
  return { faults, looked };
})()`;

describe.each([false, true])('dark: %s', (dark) => {
  test('names, levels, sizes and contrast', async (context) => {
    requirePeer(context, 'chromium');
    const { page, complaints } = await openConsole(browser, it.url, { dark });
    await page.locator('.box-node').first().click();
    await page.locator('#inspector dt').getByText('Cache').waitFor();
    await page.fill('#prompt-input', 'nonsense');
    await page.keyboard.press('Enter');
    await page.locator('#prompt-log .answer-bad').first().waitFor();
    const audit = async (): Promise<void> => {
      const { faults, looked } = await look<{ faults: string[]; looked: number }>(page, AUDIT);
      expect(faults).toEqual([]);
      expect(looked).toBeGreaterThan(30);
    };
    await audit();
    await page.click('text=Add disk …');
    for (const more of await page.locator('dialog .more > summary').all()) await more.click();
    await page.locator('dialog').getByRole('button', { name: 'Run' }).click();
    await page.locator('dialog').getByRole('alert').waitFor();
    await audit();
    await page.keyboard.press('Escape');
    await page.locator('#inspector').getByRole('button', { name: 'Delete …' }).click();
    await audit();
    await page.keyboard.press('Escape');
    const scheme = (): Promise<string> =>
      look<string>(
        page,
        'getComputedStyle(document.body).backgroundColor + getComputedStyle(document.documentElement).backgroundColor',
      );
    const before = await scheme();
    // The choice in the header wins over the system's.
    await page.locator('#theme').click();
    if (!dark) await page.locator('#theme').click();
    expect(await scheme()).not.toBe(before);
    await audit();
    expect(complaints).toEqual([]);
    await page.close();
  });
});

test('the audit finds what it looks for', async (context) => {
  requirePeer(context, 'chromium');
  const { page } = await openConsole(browser, it.url);
  await look(
    page,
    `(() => {
      const bad = document.createElement('button');
      bad.style.width = '9px';
      bad.style.padding = '0';
      const label = document.createElement('p');
      label.textContent = 'pale';
      label.style.color = '#bbb';
      label.id = 'graph';
      document.querySelector('main').append(bad, label);
    })()`,
  );
  const { faults } = await look<{ faults: string[] }>(page, AUDIT);
  expect(faults.map((fault) => fault.split(':')[0]?.split(' ')[0]).sort()).toEqual([
    'contrast',
    'no',
    'small',
    'twice',
  ]);
  await page.close();
});
