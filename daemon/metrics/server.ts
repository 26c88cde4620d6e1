/**
 * `--metrics HOST:PORT`: the place where Prometheus reads metrics (GET /metrics). Who may come in: web/access.ts.
 */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { BlockError } from '../../src/errors/error.ts';
import { onOff, splitAddressOption, splitHostPort } from '../arguments/address-option.ts';
import {
  type AccessOptions,
  checkAddress,
  IMPATIENCE,
  limitSilentClients,
  listenHttp,
  provideToken,
  refusalOf,
} from '../web/access.ts';
import { blockFamilies, type Watched } from './families.ts';
import { CONTENT_TYPE, createScraper } from './scrape.ts';

export interface MetricsOptions extends AccessOptions {
  readonly host: string;
  readonly port: string;
}

export interface MetricsListener {
  /** Where the metrics are, with the token. */
  readonly url: string;
  close(): void;
}

/** Reads the option's argument: HOST:PORT[,token=...][,token-file=...][,remote=on|off]; commas in values are doubled. */
export function parseMetricsOption(text: string): MetricsOptions {
  const { address, pairs } = splitAddressOption(text);
  const place = splitHostPort(address);
  if (place === null) throw new BlockError(`Invalid address '${address}', expected: HOST:PORT`);
  let options: MetricsOptions = {
    ...place,
    token: null,
    tokenFile: null,
    remote: false,
  };
  for (const { key, value } of pairs) {
    if (key === 'token' && value !== '') options = { ...options, token: value };
    else if (key === 'token-file' && value !== '') options = { ...options, tokenFile: value };
    else if (key === 'remote') options = { ...options, remote: onOff(key, value) };
    else throw new BlockError(`Invalid parameter '${key}'`);
  }
  return options;
}

/** What a client that is turned away may do about it. */
const REASONS = {
  401: "The token is missing or wrong: ask for /metrics?token=TOKEN, or send 'Authorization: Bearer TOKEN'. The daemon shows the token when it starts, or keeps it in its token-file.",
  403: "Pages of other sites may not read this: the request's Origin is not the host that it asks.",
  404: 'The metrics are at /metrics.',
  405: 'The metrics are to be read only: GET /metrics.',
  421: "The request's Host is not this host: ask localhost or a loopback address, or start the daemon with 'remote=on'.",
  500: 'The metrics could not be read: see the log of the daemon.',
} as const;

function refuse(response: ServerResponse, status: keyof typeof REASONS): void {
  response.writeHead(status, {
    'Content-Type': 'text/plain',
    ...(status === 401 && { 'WWW-Authenticate': 'Bearer' }),
    ...(status === 405 && { Allow: 'GET, HEAD' }),
  });
  response.end(`${REASONS[status]}\n`);
}

function statusOf(request: IncomingMessage, token: string, remote: boolean): keyof typeof REASONS | null {
  const refusal = refusalOf(request, token, remote);
  if (refusal !== null) return refusal;
  if (!/^\/metrics\/?(\?|$)/.test(request.url ?? '')) return 404;
  return request.method === 'GET' || request.method === 'HEAD' ? null : 405;
}

/** Starts to listen. `reportBug` is told when the metrics could not be read. */
export async function startMetrics(
  options: MetricsOptions,
  watched: Watched,
  reportBug: (error: unknown) => void,
): Promise<MetricsListener> {
  const { host, port, remote } = options;
  checkAddress({ host, port }, options, 'Metrics for clients');
  const { token, removeFile } = provideToken(options);
  const scrape = createScraper(blockFamilies(watched));
  const server = createServer(IMPATIENCE, (request, response) => {
    // A connection for each scrape: none stays.
    response.setHeader('Connection', 'close');
    response.setHeader('X-Content-Type-Options', 'nosniff');
    response.setHeader('Cache-Control', 'no-store');
    const status = statusOf(request, token, remote);
    if (status !== null) {
      refuse(response, status);
      return;
    }
    scrape().then(
      (text) => {
        response.writeHead(200, { 'Content-Type': CONTENT_TYPE, 'Content-Length': text.length });
        response.end(request.method === 'HEAD' ? undefined : text);
      },
      (error: unknown) => {
        reportBug(error);
        refuse(response, 500);
      },
    );
  });
  limitSilentClients(server);
  let where: string;
  try {
    where = await listenHttp(server, { host, port }, options, '');
  } catch (error) {
    removeFile();
    throw error;
  }
  return {
    url: `http://${where}/metrics?token=${encodeURIComponent(token)}`,
    close: () => {
      removeFile();
      server.close();
      server.closeAllConnections();
    },
  };
}
