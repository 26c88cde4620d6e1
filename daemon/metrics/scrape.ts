/**
 * Writes the metrics down in Prometheus' text format. A daemon with thousands of exports has megabytes of them: they are
 * written in pieces, and requests are served in between.
 *
 * The samples of families are written here, in a tenth of the time that a registry of prom-client takes for them; what is
 * known of the process is prom-client's.
 */

import { collectDefaultMetrics, Registry } from 'prom-client';
import { nextTurn } from '../../src/aio/host/turns.ts';
import type { Family, Sample } from './families.ts';

/** Samples written in one piece: a fraction of a millisecond. */
const PIECE_SAMPLES = 1000;
/** Text between two turns of the event loop. */
const PIECE_BYTES = 64 * 1024;
/** How often the event loop is asked whether it is late. Each time wakes the process. */
const LOOK_MS = 50;

export const CONTENT_TYPE = Registry.PROMETHEUS_CONTENT_TYPE;

const TO_ESCAPE = /["\\\n]/;

function escaped(value: string): string {
  return TO_ESCAPE.test(value)
    ? value.replace(/["\\\n]/g, (character) => (character === '\n' ? '\\n' : `\\${character}`))
    : value;
}

function labelText(labels: Sample['labels']): string {
  let text = '';
  for (const name in labels) text += `${text === '' ? '' : ','}${name}="${escaped(labels[name] ?? '')}"`;
  return text === '' ? '' : `{${text}}`;
}

function valueText(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return '+Inf';
  return value === Number.NEGATIVE_INFINITY ? '-Inf' : String(value);
}

/** The lines of a family, in pieces. */
function* writeFamily(family: Family): Generator<string> {
  const { name, help, type } = family;
  let text = `# HELP ${name} ${help.replace(/[\\\n]/g, (one) => (one === '\n' ? '\\n' : '\\\\'))}\n# TYPE ${name} ${type}\n`;
  let count = 0;
  for (const { metricName = name, labels, value } of family.samples()) {
    text += `${metricName}${labelText(labels)} ${valueText(value)}\n`;
    count += 1;
    if (count % PIECE_SAMPLES !== 0) continue;
    yield text;
    text = '';
  }
  yield text;
}

/** A scraper of these families and of what is known of the process. Clients that come at once share one scrape. */
export function createScraper(families: readonly Family[]): () => Promise<Buffer> {
  const processRegistry = new Registry();
  collectDefaultMetrics({ register: processRegistry, eventLoopMonitoringPrecision: LOOK_MS });
  let running: Promise<Buffer> | null = null;
  const scrape = async (): Promise<Buffer> => {
    const pieces: Buffer[] = [];
    let text = '';
    for (const family of families) {
      for (const piece of writeFamily(family)) {
        text += piece;
        if (text.length < PIECE_BYTES) continue;
        pieces.push(Buffer.from(text));
        text = '';
        await nextTurn();
      }
      text += '\n';
    }
    pieces.push(Buffer.from(text), Buffer.from(await processRegistry.metrics()));
    return Buffer.concat(pieces);
  };
  return () => {
    running ??= scrape().finally(() => {
      running = null;
    });
    return running;
  };
}
