/**
 * The console: one page that talks QMP over the WebSocket of the port it came from. It is built into a single file
 * (console/, scripts/bundle-console.mjs), so that the token which lets the page in lets in all of it.
 *
 * Here: finding the file, and what a browser is told about it. Who may have it: access.ts.
 */

import { readFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';

export interface ConsolePage {
  readonly html: Buffer;
  /** Content-Security-Policy: the page's own script and style by their hashes, connections to where it came from. */
  readonly policy: string;
}

/** The page as it was built; null where it was not. Read once, so that it fits the daemon whatever is installed later. */
export function loadConsolePage(): ConsolePage | null {
  // Seen from the bundle, dist/bundle/.
  const folder = new URL('../console/', import.meta.url);
  try {
    return {
      html: readFileSync(new URL('console.html', folder)),
      policy: readFileSync(new URL('console.csp', folder), 'utf8').trim(),
    };
  } catch {
    return null;
  }
}

/** Whether the request asks for the page. */
export function isConsolePath(request: IncomingMessage): boolean {
  return /^\/(\?|$)/.test(request.url ?? '');
}

/** Sends the page; for HEAD, what would come with it. */
export function sendConsolePage(
  request: IncomingMessage,
  response: ServerResponse,
  { html, policy }: ConsolePage,
): void {
  response.writeHead(200, {
    'Content-Type': 'text/html; charset=utf-8',
    'Content-Length': html.length,
    'Content-Security-Policy': policy,
    'X-Frame-Options': 'DENY',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
  });
  response.end(request.method === 'HEAD' ? undefined : html);
}
