/** The console in Chromium, as somebody uses it: a disk is added, exported and mirrored, with the mouse and without. */

import { spawnSync } from 'node:child_process';
import { truncateSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { Browser } from 'playwright-core';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { limitMs } from '../patience.ts';
import { repositoryRoot } from '../peers/daemons.ts';
import { hasPeer, requirePeer } from '../peers/requires.ts';
import {
  type Console,
  expectNoSidewaysScroll,
  focused,
  launchBrowser,
  look,
  openConsole,
  startConsole,
} from './browser.ts';

const present = hasPeer('chromium');
const DISK_BYTES = 64 << 20;
let browser: Browser;

beforeAll(async () => {
  if (present) browser = await launchBrowser();
});
afterAll(async () => {
  if (present) await browser.close();
});

const soon = { timeout: limitMs(30_000) };

function makeDisk({ daemon }: Console): string {
  const file = path.join(daemon.dir, 'disk.raw');
  writeFileSync(file, '');
  truncateSync(file, DISK_BYTES);
  return file;
}

test('a disk is added, exported, mirrored, and the job is seen to finish', async (context) => {
  requirePeer(context, 'chromium');
  const it = await startConsole();
  const { client } = it;
  try {
    const { page, complaints } = await openConsole(browser, it.url);
    expect(await page.locator('#graph-empty').isVisible()).toBe(true);
    expect(await page.locator('#charts-empty').isVisible()).toBe(true);
    expect(await page.locator('#jobs-empty').isVisible()).toBe(true);

    // What cannot be opened is refused, with the daemon's words, and the form stays as it is.
    await page.click('text=Add disk …');
    const dialog = page.locator('dialog');
    await dialog.getByLabel('driver', { exact: true }).first().selectOption('raw');
    await dialog.getByLabel('node-name').fill('disk');
    await dialog.getByLabel('filename').fill('/nonexistent/disk');
    await dialog.getByRole('button', { name: 'Run' }).click();
    await dialog.getByRole('alert').getByText("Could not open '/nonexistent/disk'").waitFor();
    await dialog.getByLabel('filename').fill(makeDisk(it));
    await dialog.getByRole('button', { name: 'Run' }).click();
    await dialog.waitFor({ state: 'detached' });
    await page.getByRole('button', { name: 'node disk, raw · 64 MiB' }).waitFor();
    expect((await client.queryNamedBlockNodes()).map((node) => node['node-name'])).toContain('disk');

    await page.click('text=NBD server …');
    await dialog.getByLabel('path').fill(path.join(it.daemon.dir, 'nbd'));
    await dialog.getByRole('button', { name: 'Run' }).click();
    await dialog.waitFor({ state: 'detached' });

    // From the details of the node: its name is filled in.
    await page.getByRole('button', { name: 'node disk, raw · 64 MiB' }).click();
    const details = page.locator('#inspector');
    await details.getByText('64 MiB (67108864 bytes)').waitFor();
    await details.getByText('data, primary').waitFor();
    await details.getByRole('button', { name: 'Export …' }).click();
    expect(await dialog.getByLabel('node-name').inputValue()).toBe('disk');
    await dialog.getByLabel('writable').selectOption({ label: 'yes' });
    await dialog.getByRole('button', { name: 'Run' }).click();
    await dialog.waitFor({ state: 'detached' });
    await page.getByRole('button', { name: 'export disk, nbd export · 0 clients' }).waitFor();
    expect(await client.queryBlockExports()).toMatchObject([{ id: 'disk', 'node-name': 'disk' }]);

    // What a client does is seen in the charts.
    const image = `nbd+unix:///disk?socket=${path.join(it.daemon.dir, 'nbd')}`;
    const written = spawnSync(
      path.join(repositoryRoot, 'daemon/bin/qblock-io'),
      ['-f', 'raw', '-c', 'write -P 7 0 8M', image],
      { encoding: 'utf8' },
    );
    expect([written.status, written.stderr]).toEqual([0, '']);
    await details.getByRole('button', { name: 'Close the details' }).click();
    await page.getByRole('button', { name: 'export disk, nbd export' }).click();
    await details.getByText('(8 MiB)').waitFor();

    await client.blockdevAdd({ driver: 'null-co', 'node-name': 'copy', size: DISK_BYTES });
    await page.getByRole('button', { name: 'node copy, null-co · 64 MiB' }).waitFor();
    await page.locator('#jobs').getByRole('button', { name: 'Mirror …' }).click();
    await dialog.getByLabel('job-id').fill('m');
    await dialog.getByLabel('device').fill('disk');
    await dialog.getByLabel('target', { exact: true }).fill('copy');
    await dialog.locator('summary').first().click();
    await dialog.getByLabel('speed').fill('1M');
    await dialog.getByRole('button', { name: 'Run' }).click();
    await dialog.waitFor({ state: 'detached' });
    const job = page.locator('#jobs .job');
    await job.getByText('running').waitFor();
    expect((await client.queryBlockJobs())[0]?.speed).toBe(1 << 20);
    await job.getByRole('button', { name: 'Pause m' }).click();
    await job.getByText('paused').waitFor();
    await job.getByRole('button', { name: 'Resume m' }).click();
    await job.getByText('running').waitFor();
    await job.getByLabel('Speed limit of m,').fill('fast');
    await job.getByRole('button', { name: 'Set the speed limit of m' }).click();
    await page.getByRole('alert').getByText('Not a speed: fast').waitFor();
    await job.getByLabel('Speed limit of m,').fill('0');
    await job.getByRole('button', { name: 'Set the speed limit of m' }).click();
    await job.getByText('ready', { exact: true }).waitFor();
    expect(await job.getByRole('progressbar').getAttribute('aria-valuenow')).toBe('100');
    await job.getByRole('button', { name: 'Complete m' }).click();
    await page.locator('#events').getByText('BLOCK_JOB_COMPLETED').waitFor();
    await page.locator('#jobs-empty').waitFor();
    expect(await client.queryJobs()).toEqual([]);
    expect((await client.queryBlockExports())[0]).toMatchObject({ 'node-name': 'copy' });

    // Taken away after a question.
    await page.getByRole('button', { name: 'node disk, raw' }).click();
    await details.getByRole('button', { name: 'Delete …' }).click();
    await dialog.getByRole('button', { name: 'Keep' }).click();
    expect((await client.queryNamedBlockNodes()).map((node) => node['node-name'])).toContain('disk');
    await details.getByRole('button', { name: 'Delete …' }).click();
    await dialog.getByRole('button', { name: 'Delete' }).click();
    await expect.poll(async () => (await client.queryNamedBlockNodes()).length, soon).toBe(1);
    expect(complaints).toEqual([]);
    await page.close();
  } finally {
    await it.stop();
  }
});

test('a job that is cancelled, and one that fails', async (context) => {
  requirePeer(context, 'chromium');
  const it = await startConsole([
    ...['--blockdev', `driver=null-co,node-name=a,size=${DISK_BYTES}`],
    ...['--blockdev', `driver=null-co,node-name=b,size=${DISK_BYTES}`],
    ...['--blockdev', `driver=null-co,node-name=c,size=${DISK_BYTES / 2}`],
  ]);
  try {
    const { page, complaints } = await openConsole(browser, it.url);
    await it.client.blockdevMirror({ 'job-id': 'm', device: 'a', target: 'b', sync: 'full', speed: 1 << 20 });
    const job = page.locator('#jobs .job');
    await job.getByRole('button', { name: 'Cancel … m' }).click();
    await page.locator('dialog').getByRole('button', { name: 'Cancel the job' }).click();
    await page.locator('#events').getByText('BLOCK_JOB_CANCELLED').waitFor();
    await page.locator('#jobs-empty').waitFor();
    // Its error is shown until it is dismissed.
    await it.client.blockdevCreate({
      ...{ 'job-id': 'bad', options: { driver: 'qcow2', file: 'c', size: 2 ** 62 } },
    });
    await job
      .locator('.job-error')
      .getByText('too large')
      .or(job.locator('.job-error').getByText('too big'))
      .waitFor();
    await job.getByRole('button', { name: 'Dismiss bad' }).click();
    await page.locator('#jobs-empty').waitFor();
    expect(complaints).toEqual([]);
    await page.close();
  } finally {
    await it.stop();
  }
});

test('by keyboard alone', async (context) => {
  requirePeer(context, 'chromium');
  const it = await startConsole();
  try {
    const { page, complaints } = await openConsole(browser, it.url);
    const key = (name: string): Promise<void> => page.keyboard.press(name);
    /** Goes on by Tab until something of that name has the focus, which then is to be seen. */
    const tabTo = async (name: RegExp): Promise<void> => {
      for (let step = 0; step < 80; step += 1) {
        await key('Tab');
        if (!name.test(await focused(page))) continue;
        expect(await look(page, 'getComputedStyle(document.activeElement).outlineStyle')).not.toBe('none');
        return;
      }
      throw new Error(`Tab does not lead to ${name}`);
    };
    await key('Tab');
    expect(await focused(page)).toBe('Skip to the content');
    await tabTo(/^Add disk/);
    await key('Enter');
    // The first thing that is missing has the focus.
    await expect.poll(() => focused(page), soon).toBe('node-name');
    await page.keyboard.type('disk');
    await tabTo(/^filename/);
    await page.keyboard.type(makeDisk(it));
    await key('Shift+Tab');
    await key('Shift+Tab');
    await key('Shift+Tab');
    await key('Shift+Tab');
    expect(await focused(page)).toBe('driver');
    await page.keyboard.type('raw');
    await tabTo(/^Run$/);
    await key('Enter');
    await page.locator('dialog').waitFor({ state: 'detached' });
    // Arrows go through the graph, Enter shows details, Escape brings back.
    await page.locator('.box').nth(1).waitFor();
    await tabTo(/^node /);
    await key('ArrowUp');
    expect(await focused(page)).toMatch(/^node disk, raw/);
    await key('ArrowDown');
    expect(await focused(page)).toMatch(/^node #block\d+, file/);
    await key('ArrowUp');
    await key('Enter');
    expect(await focused(page)).toBe('disk');
    await key('Escape');
    expect(await focused(page)).toMatch(/^node disk, raw/);
    // The prompt: Tab completes, Escape ends that, arrows bring back what was typed.
    await page.locator('#prompt-input').focus();
    await page.keyboard.type('query-named');
    await page.locator('#prompt-options li').first().waitFor();
    await key('Tab');
    expect(await page.inputValue('#prompt-input')).toBe('query-named-block-nodes ');
    await page.locator('#prompt-options li').first().waitFor();
    await page.keyboard.type('flat=t');
    await expect.poll(() => page.locator('#prompt-options li').allTextContents(), soon).toEqual(['true']);
    await key('ArrowDown');
    expect(await page.getAttribute('#prompt-input', 'aria-activedescendant')).toBe('prompt-option-0');
    await key('Enter');
    expect(await page.inputValue('#prompt-input')).toBe('query-named-block-nodes flat=true ');
    await key('Escape');
    await key('Enter');
    await page.locator('#prompt-log').getByText('"node-name": "disk"').waitFor();
    await key('ArrowUp');
    expect(await page.inputValue('#prompt-input')).toBe('query-named-block-nodes flat=true');
    await page.fill('#prompt-input', 'blockdev-del node-name=none');
    await key('Enter');
    await page
      .locator('#prompt-log')
      .getByText("GenericError: Failed to find node with node-name='none'")
      .waitFor();
    await key('Tab');
    expect(await focused(page)).toBe('Run');
    expect(complaints).toEqual([]);
    await page.close();
  } finally {
    await it.stop();
  }
});

test('the daemon goes: the page says so, and goes on when it is back', async (context) => {
  requirePeer(context, 'chromium');
  const it = await startConsole();
  const { page } = await openConsole(browser, it.url);
  await it.stop();
  await page.locator('#lost').getByText('does not answer').waitFor();
  const { port } = new URL(it.url);
  const again = await startConsole(['--qmp', `ws:127.0.0.1:${port},token=t`]);
  try {
    await page.locator('#lost').waitFor({ state: 'hidden' });
    await again.client.blockdevAdd({ driver: 'null-co', 'node-name': 'new', size: 512 });
    await page.getByRole('button', { name: 'node new, null-co' }).waitFor();
    await expectNoSidewaysScroll(page);
    await page.close();
  } finally {
    await again.stop();
  }
});
