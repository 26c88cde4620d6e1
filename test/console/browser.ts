/** A real browser on the console of a real daemon: everything it complains of is a failure. */

import { type Browser, chromium, type Page } from 'playwright-core';
import { expect } from 'vitest';
import { type Client, connect } from '../../client/node.ts';
import { limitMs } from '../patience.ts';
import { type RunningDaemon, startDaemon } from '../peers/daemons.ts';
import { freePort } from '../peers/free-port.ts';

export interface Console {
  readonly daemon: RunningDaemon;
  /** The page's address, with the token. */
  readonly url: string;
  readonly client: Client;
  stop(): Promise<void>;
}

/** A daemon with a console, and a client of its own beside the page's. */
export async function startConsole(args: readonly string[] = []): Promise<Console> {
  const port = await freePort();
  const daemon = await startDaemon('qblockd', { args: ['--qmp', `ws:127.0.0.1:${port},token=t`, ...args] });
  const client = await connect(`unix:${daemon.socketPath}`);
  const stop = async (): Promise<void> => {
    await client.close();
    await daemon.stop();
  };
  return { daemon, url: `http://127.0.0.1:${port}/?token=t`, client, stop };
}

export function launchBrowser(): Promise<Browser> {
  const isRoot = process.getuid?.() === 0;
  // A sandbox in a container that root runs is refused.
  return chromium.launch({ executablePath: '/usr/bin/chromium', args: isRoot ? ['--no-sandbox'] : [] });
}

export interface OpenPage {
  readonly page: Page;
  /** What the browser complained of: errors, violations of the policy, questions, requests to other places. */
  readonly complaints: string[];
}

export interface PageOptions {
  readonly width?: number;
  readonly height?: number;
  readonly dark?: boolean;
  /** Changes what the daemon sends before the page gets it. */
  readonly rewrite?: (message: string) => string;
}

/** Opens the console; resolves when it shows what there is. */
export async function openConsole(
  browser: Browser,
  url: string,
  { width = 1280, height = 900, dark = false, rewrite }: PageOptions = {},
): Promise<OpenPage> {
  const page = await browser.newPage({
    viewport: { width, height },
    colorScheme: dark ? 'dark' : 'light',
  });
  page.setDefaultTimeout(limitMs(30_000));
  const complaints: string[] = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(message.text());
  });
  page.on('pageerror', (error) => complaints.push(String(error)));
  page.on('dialog', (dialog) => {
    complaints.push(`asked: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on('request', (request) => {
    const asked = request.url();
    if (!asked.startsWith(new URL(url).origin) && !asked.startsWith('data:'))
      complaints.push(`asked for ${asked}`);
  });
  if (rewrite !== undefined) {
    await page.routeWebSocket(/^ws:/, (socket) => {
      const server = socket.connectToServer();
      server.onMessage((message) => socket.send(rewrite(String(message))));
    });
  }
  await page.addInitScript(`document.addEventListener('securitypolicyviolation', (event) => {
    console.error('policy: ' + event.violatedDirective + ' ' + event.blockedURI);
  });`);
  await page.goto(url);
  await page.waitForSelector('html[data-ready]');
  return { page, complaints };
}

/** Runs an expression in the page. Code of the page is text here: these files know nothing of a document. */
export function look<T>(page: Page, expression: string): Promise<T> {
  return page.evaluate<T>(expression);
}

/** Nothing sticks out to the right. */
export async function expectNoSidewaysScroll(page: Page): Promise<void> {
  const [content, window] = await look<[number, number]>(
    page,
    '[document.documentElement.scrollWidth, document.documentElement.clientWidth]',
  );
  expect(content).toBe(window);
}

/** What has the focus, as it is called. */
export function focused(page: Page): Promise<string> {
  return look<string>(
    page,
    `(() => {
      const at = document.activeElement;
      return at?.getAttribute('aria-label') ?? at?.labels?.[0]?.textContent ?? at?.textContent ?? '';
    })()`,
  );
}
