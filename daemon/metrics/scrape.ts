/**
 * Writes the metrics down in Prometheus' text format. A daemon with thousands of exports has megabytes of them: they are
 * written in pieces, and requests are served in between.
 */

import { collectDefaultMetrics, type Metric, Registry } from 'prom-client';
import type { Family, Sample } from './families.ts';

/** Samples written in one piece: about a millisecond. */
const PIECE_SAMPLES = 500;
/** The lines "# HELP ..." and "# TYPE ..." in front of a piece. */
const HEAD_LINES = 2;
/** How often the event loop is asked whether it is late. Each time wakes the process. */
const LOOK_MS = 20;

export const CONTENT_TYPE = Registry.PROMETHEUS_CONTENT_TYPE;

/** Writes some samples of a family, with its head. */
function writePiece({ name, help, type }: Family, values: readonly Sample[]): Promise<string> {
  const registry = new Registry();
  // A registry asks a metric for this and nothing else when it writes it down.
  const metric = { name, help, type, get: () => Promise.resolve({ name, help, type, values }) };
  registry.registerMetric(metric as unknown as Metric);
  return registry.getSingleMetricAsString(name);
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

async function* writeFamily(family: Family): AsyncGenerator<string> {
  let isFirst = true;
  let piece: Sample[] = [];
  const flush = async (): Promise<string> => {
    const text = await writePiece(family, piece);
    const lines = isFirst ? text : text.split('\n').slice(HEAD_LINES).join('\n');
    isFirst = false;
    piece = [];
    return `${lines}\n`;
  };
  for (const sample of family.samples()) {
    piece.push(sample);
    if (piece.length < PIECE_SAMPLES) continue;
    yield await flush();
    await nextTurn();
  }
  if (isFirst || piece.length > 0) yield await flush();
}

/** A scraper of these families and of what is known of the process. Clients that come at once share one scrape. */
export function createScraper(families: readonly Family[]): () => Promise<Buffer> {
  const processRegistry = new Registry();
  collectDefaultMetrics({ register: processRegistry, eventLoopMonitoringPrecision: LOOK_MS });
  let running: Promise<Buffer> | null = null;
  const scrape = async (): Promise<Buffer> => {
    const pieces: Buffer[] = [];
    for (const family of families)
      for await (const text of writeFamily(family)) pieces.push(Buffer.from(`${text}\n`));
    pieces.push(Buffer.from(await processRegistry.metrics()));
    return Buffer.concat(pieces);
  };
  return () => {
    running ??= scrape().finally(() => {
      running = null;
    });
    return running;
  };
}
