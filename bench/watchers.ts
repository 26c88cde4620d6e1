/**
 * `npm run bench:watchers`: what it costs the data path that somebody looks on. 4 KiB random reads and writes of a raw
 * file in the page cache over NBD, with nobody watching, with Prometheus' reading of the metrics, and with the console
 * open: its looks from a client without a browser, and the page itself in Chromium where that is installed.
 *
 * The daemon is pinned to one CPU; fio and who watches share the other, as they would share other machines. So requests a
 * second tell of the watcher's own appetite too; CPU a request of the daemon tells what watching costs it. All settings
 * are measured one right after the other, in another order each round.
 *
 * Options: --runtime SECONDS (4), --rounds N (5), --load PART of a load's name, --setting PART of a setting's name.
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { get } from 'node:http';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { connect } from '../client/node.ts';
import { CLIENT_CPU, type Figures, type Load, load, qblockd, runFio, SERVER_CPU, thousands } from './fio.ts';
import { hasProgram, markdownTable, median, parseOptions, pinned, sleep, startUntil } from './measure.ts';

const SIZE_MIB = 256;
const PORTS = { metrics: 19_871, console: 19_872 } as const;
const PAGE = `http://127.0.0.1:${PORTS.console}/?token=t`;

interface Setting {
  readonly name: string;
  /** Whether the daemon has the metrics. */
  readonly metrics: boolean;
  /** What this file is started as, to watch; null: nobody watches. */
  readonly watcher: readonly string[] | null;
}

const SETTINGS: readonly Setting[] = [
  { name: 'nobody', metrics: false, watcher: null },
  { name: 'nobody, again', metrics: false, watcher: null },
  { name: 'metrics, 5 s', metrics: true, watcher: ['scrape', '5000'] },
  { name: 'metrics, 1 s', metrics: true, watcher: ['scrape', '1000'] },
  { name: 'console (its looks)', metrics: false, watcher: ['look'] },
  { name: 'both, 1 s', metrics: true, watcher: ['both', '1000'] },
  ...(hasProgram('chromium')
    ? [{ name: 'console in Chromium', metrics: false, watcher: ['browser'] as const }]
    : []),
];

// ---- who watches, as a process of its own ----------------------------------------------------------------------

function scrape(): Promise<void> {
  return new Promise((resolve, reject) => {
    const url = `http://127.0.0.1:${PORTS.metrics}/metrics?token=t`;
    get(url, { agent: false }, (response) => response.resume().on('end', () => resolve())).on(
      'error',
      reject,
    );
  });
}

async function scrapeEvery(ms: number): Promise<never> {
  for (;;) {
    await scrape();
    await sleep(ms);
  }
}

/** Asks what the page asks, as often. */
async function lookOn(): Promise<never> {
  const client = await connect(`ws://127.0.0.1:${PORTS.console}/?token=t`);
  for (let tick = 0; ; tick += 1) {
    await client.xQueryBlockExports();
    if (tick % 2 === 0) await Promise.all([client.xQueryBlockGraph(), client.queryBlockExports()]);
    if (tick % 3 === 0) await Promise.all([client.queryJobs(), client.queryBlockJobs()]);
    await sleep(1000);
  }
}

async function openPage(): Promise<void> {
  const { chromium } = await import('playwright-core');
  const browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: process.getuid?.() === 0 ? ['--no-sandbox'] : [],
    handleSIGTERM: true,
  });
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  await page.goto(PAGE);
  await page.waitForSelector('html[data-ready]');
}

async function watch([kind, ms]: readonly string[]): Promise<void> {
  if (kind === 'scrape') await scrapeEvery(Number(ms));
  if (kind === 'look') await lookOn();
  if (kind === 'both') await Promise.all([scrapeEvery(Number(ms)), lookOn()]);
  if (kind === 'browser') await openPage();
}

function startWatcher(words: readonly string[]): ChildProcess {
  const [program, ...args] = pinned(CLIENT_CPU, [
    process.execPath,
    fileURLToPath(import.meta.url),
    '--watch',
    ...words,
  ]);
  return spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}

// ---- measuring -------------------------------------------------------------------------------------------------

const LOADS = [load('randread', '4k', 16), load('randwrite', '4k', 16)];

async function measure(
  setting: Setting,
  loads: readonly Load[],
  dir: string,
  seconds: number,
): Promise<Map<string, Figures>> {
  const socket = path.join(dir, 'nbd');
  rmSync(socket, { force: true });
  const { child, stop } = await startUntil(
    pinned(SERVER_CPU, [
      qblockd,
      ...['--blockdev', `driver=file,node-name=f,filename=${path.join(dir, 'disk')}`],
      ...[
        '--blockdev',
        'driver=raw,node-name=d,file=f',
        '--nbd-server',
        `addr.type=unix,addr.path=${socket}`,
      ],
      ...['--export', 'type=nbd,id=e,name=,node-name=d,writable=on'],
      ...['--qmp', `ws:127.0.0.1:${PORTS.console},token=t`],
      ...(setting.metrics ? ['--metrics', `127.0.0.1:${PORTS.metrics},token=t`] : []),
    ]),
    socket,
  );
  const watcher = setting.watcher === null ? null : startWatcher(setting.watcher);
  // Until the watcher looks, and what it took to start is over.
  await sleep(watcher === null ? 300 : setting.watcher?.[0] === 'browser' ? 4000 : 1200);
  const found = new Map<string, Figures>();
  for (const each of loads) found.set(each.name, runFio(socket, child.pid!, each, seconds, SIZE_MIB));
  if (watcher !== null) {
    const gone = new Promise((resolve) => watcher.once('exit', resolve));
    watcher.kill('SIGTERM');
    await gone;
  }
  await stop();
  return found;
}

function percent(value: number, base: number): string {
  const change = (value / base - 1) * 100;
  return `${change >= 0 ? '+' : ''}${change.toFixed(1)} %`;
}

function report(
  found: ReadonlyMap<string, readonly Figures[]>,
  loads: readonly Load[],
  settings: readonly Setting[],
): string {
  const rows = loads.flatMap(({ name }) => {
    const of = (setting: string, figure: (each: Figures) => number): number =>
      median((found.get(`${name} ${setting}`) ?? []).map(figure));
    const cpu = ({ userUs, kernelUs }: Figures): number => userUs + kernelUs;
    const iops = ({ requestsPerSecond }: Figures): number => requestsPerSecond;
    const base = [of('nobody', iops), of('nobody', cpu)] as const;
    return settings.map(({ name: setting }) => [
      name,
      setting,
      thousands(of(setting, iops)),
      percent(of(setting, iops), base[0]),
      of(setting, cpu).toFixed(2),
      percent(of(setting, cpu), base[1]),
    ]);
  });
  return markdownTable(['load', 'watched by', 'requests a second', '', 'CPU us a request', ''], rows);
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2), { runtime: '4', rounds: '5', load: '', setting: '' });
  const loads = LOADS.filter(({ name }) => name.includes(options.load));
  // What the others are compared with is always measured.
  const settings = SETTINGS.filter(({ name }, index) => index === 0 || name.includes(options.setting));
  const dir = mkdtempSync(path.join(tmpdir(), 'qblockd-watchers-'));
  try {
    writeFileSync(path.join(dir, 'disk'), Buffer.alloc(SIZE_MIB << 20, 7));
    const found = new Map<string, Figures[]>();
    for (let round = 0; round < Number(options.rounds); round += 1) {
      for (let step = 0; step < settings.length; step += 1) {
        const setting = settings[(step + round) % settings.length]!;
        for (const [name, figures] of await measure(setting, loads, dir, Number(options.runtime))) {
          const key = `${name} ${setting.name}`;
          found.set(key, [...(found.get(key) ?? []), figures]);
        }
      }
    }
    process.stdout.write(`${report(found, loads, settings)}\n`);
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

const words = process.argv.slice(2);
await (words[0] === '--watch' ? watch(words.slice(1)) : main());
