/** `--metrics`: what is told, to whom, and that it can be read whatever things are called. */

import { spawnSync } from 'node:child_process';
import { existsSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { type IncomingHttpHeaders, request } from 'node:http';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Family } from '../../../daemon/metrics/families.ts';
import { createScraper } from '../../../daemon/metrics/scrape.ts';
import { parseMetricsOption } from '../../../daemon/metrics/server.ts';
import { daemonProgram, makeScratchDir, type RunningDaemon, startDaemon } from '../../peers/daemons.ts';
import { freePort } from '../../peers/free-port.ts';

interface Answer {
  readonly status: number;
  readonly text: string;
  readonly headers: IncomingHttpHeaders;
}

function ask(
  port: number,
  url: string,
  headers: Readonly<Record<string, string>> = {},
  method = 'GET',
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    request({ host: '127.0.0.1', port, path: url, headers, method }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (part: string) => {
        text += part;
      });
      response.on('end', () =>
        resolve({ status: response.statusCode ?? 0, text, headers: response.headers }),
      );
    })
      .on('error', reject)
      .end();
  });
}

interface Parsed {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** Reads the text format strictly; throws at a line that is none of it. */
function parse(text: string): Parsed[] {
  return text
    .split('\n')
    .filter((line) => line !== '' && !/^# (HELP|TYPE) [a-z0-9_:]+ /.test(line))
    .map((line) => {
      const match = /^([a-z0-9_:]+)(?:\{(.*)\})? (\S+)$/.exec(line);
      if (match === null) throw new Error(`not a sample: ${line}`);
      const [, name = '', inner = '', value = ''] = match;
      const label = /([a-z_]+)="((?:[^"\\]|\\[\\"n])*)"(?:,|$)/y;
      const labels: Record<string, string> = {};
      while (label.lastIndex < inner.length) {
        const found = label.exec(inner);
        if (found === null) throw new Error(`not a label: ${inner}`);
        labels[found[1] ?? ''] = (found[2] ?? '').replace(/\\(.)/g, (_, char: string) =>
          char === 'n' ? '\n' : char,
        );
      }
      return { name, labels, value: Number(value) };
    });
}

const token = 'open sesame/+';
const good = `/metrics?token=${encodeURIComponent(token)}`;

describe('a daemon with metrics', () => {
  let daemon: RunningDaemon;
  let dir = '';
  let port = 0;

  beforeAll(async () => {
    port = await freePort();
    dir = makeScratchDir();
    daemon = await startDaemon('qblockd', {
      dir,
      args: [
        ...['--blockdev', 'driver=null-co,node-name=n,size=67108864,read-zeroes=on'],
        ...['--nbd-server', 'addr.type=unix,addr.path=$DIR/nbd'],
        ...['--export', 'type=nbd,id=e,node-name=n,writable=on'],
        ...['--metrics', `127.0.0.1:${port},token=${token},token-file=$DIR/token`],
      ],
    });
  });
  afterAll(async () => {
    const tokenFile = path.join(dir, 'token');
    expect(statSync(tokenFile).mode & 0o777).toBe(0o600);
    const report = await daemon.stop();
    expect(report).toMatchObject({ status: 0 });
    expect(existsSync(tokenFile)).toBe(false);
    rmSync(dir, { recursive: true });
  });

  test.each<[string, string, Record<string, string>, string, number]>([
    ['the token in the address', good, {}, 'GET', 200],
    ['the token in a header', '/metrics', { authorization: `Bearer ${token}` }, 'GET', 200],
    ['only the head', good, {}, 'HEAD', 200],
    ['no token', '/metrics', {}, 'GET', 401],
    ['a wrong token', '/metrics?token=open', {}, 'GET', 401],
    ['a page of another site', good, { origin: 'http://evil.example' }, 'GET', 403],
    ['another name of this host', good, { host: 'evil.example' }, 'GET', 421],
    ['something else', good.replace('metrics', 'x'), {}, 'GET', 404],
    ['something else without a token', '/x', {}, 'GET', 401],
    ['a change', good, {}, 'POST', 405],
  ])('%s', async (_name, url, headers, method, expected) => {
    const { status, text, headers: answered } = await ask(port, url, headers, method);
    expect(status).toBe(expected);
    if (expected === 200) expect(answered['content-type']).toMatch(/^text\/plain; version=0\.0\.4/);
    else expect(text).toMatch(/^[A-Z].*\.\n$/);
    if (expected !== 200) expect(text).not.toContain(token);
  });

  test('requests of a client are counted', async () => {
    const { status, stderr } = spawnSync(daemonProgram('qblockd').replace(/qblockd$/, 'qblock-io'), [
      ...['-c', 'write 0 64k', '-c', 'read 0 4k', '-c', 'flush', '-f', 'raw'],
      `nbd+unix:///n?socket=${daemon.dir}/nbd`,
    ]);
    expect(String(stderr)).toBe('');
    expect(status).toBe(0);
    const samples = parse((await ask(port, good)).text);
    const value = (name: string, labels: Readonly<Record<string, string>> = {}): number | undefined =>
      samples.find(
        (sample) =>
          sample.name === name &&
          Object.entries(labels).every(([key, wanted]) => sample.labels[key] === wanted),
      )?.value;
    const write = { export: 'e', operation: 'write' };
    expect(value('qblockd_export_requests_total', write)).toBe(1);
    expect(value('qblockd_export_request_bytes_total', write)).toBe(65536);
    expect(value('qblockd_export_request_failures_total', write)).toBe(0);
    expect(value('qblockd_export_request_duration_seconds_count', write)).toBe(1);
    expect(value('qblockd_export_request_duration_seconds_bucket', { ...write, le: '+Inf' })).toBe(1);
    expect(value('qblockd_export_request_bytes_total', { ...write, operation: 'read' })).toBeGreaterThan(0);
    expect(value('qblockd_export_info', { export: 'e', type: 'nbd', node: 'n' })).toBe(1);
    expect(value('qblockd_node_size_bytes', { node: 'n' })).toBe(67108864);
    expect(value('qblockd_monitor_clients')).toBe(0);
    expect(value('process_open_fds')).toBeGreaterThan(3);
    expect(value('nodejs_eventloop_lag_max_seconds')).toBeDefined();
    // Buckets are cumulative.
    const buckets = samples
      .filter(({ name, labels }) => name.endsWith('_bucket') && labels.operation === 'write')
      .map((sample) => sample.value);
    expect(buckets).toEqual([...buckets].sort((a, b) => a - b));
  });

  test('a job is seen with its progress and its limit', async () => {
    const qmp = await daemon.connect();
    await qmp.execute('qmp_capabilities');
    await qmp.execute('blockdev-add', { driver: 'null-co', 'node-name': 't', size: 67108864 });
    const job = { 'job-id': 'j', device: 'n', target: 't', sync: 'full', speed: 65536 };
    await qmp.execute('blockdev-backup', job);
    const { text } = await ask(port, good);
    expect(text).toMatch(/^qblockd_monitor_clients 1$/m);
    const samples = parse(text).filter(({ labels }) => labels.job_id === 'j');
    const byName = Object.fromEntries(samples.map(({ name, value }) => [name, value]));
    expect(byName).toMatchObject({
      qblockd_job_info: 1,
      qblockd_job_failed: 0,
      qblockd_job_progress_expected: 67108864,
      qblockd_job_speed_limit_bytes_per_second: 65536,
    });
    await qmp.execute('block-job-cancel', { device: 'j', force: true });
    qmp.close();
  });

  test('many at once are all answered', async () => {
    const answers = await Promise.all(Array.from({ length: 30 }, () => ask(port, good)));
    expect(answers.map(({ status }) => status)).toEqual(Array(30).fill(200));
  });
});

test('hostile names stay inside their labels, in every piece of a large family', async () => {
  const names = ['a"} 1\nevil 1', '\\', '\\n', 'x\ny', '{le="1"}', 'ü☃', ''];
  const many = Array.from({ length: 3000 }, (_, index) => `${names[index % names.length]}${index}`);
  const family: Family = {
    name: 'qblockd_test',
    help: 'A test.',
    type: 'gauge',
    *samples() {
      for (const name of many) yield { labels: { node: name }, value: 1 };
    },
  };
  const text = String(await createScraper([family])());
  const samples = parse(text).filter(({ name }) => name === 'qblockd_test');
  expect(samples.map(({ labels }) => labels.node)).toEqual(many);
  expect(text.match(/^# TYPE qblockd_test gauge$/gm)).toHaveLength(1);
});

test('labels, numbers and texts that have to be written specially', async () => {
  const hostile = 'a"b\\c\nd}e,{é';
  const family: Family = {
    ...{ name: 'qblockd_test', help: 'One\ntwo \\', type: 'gauge' },
    *samples() {
      yield { labels: { node: hostile, other: '' }, value: Number.POSITIVE_INFINITY };
      yield { labels: {}, value: 1.5e-7 };
      yield { labels: {}, value: Number.NaN, metricName: 'qblockd_test_sum' };
    },
  };
  const text = String(await createScraper([family])());
  expect(text.split('\n').slice(0, 5)).toEqual([
    '# HELP qblockd_test One\\ntwo \\\\',
    '# TYPE qblockd_test gauge',
    'qblockd_test{node="a\\"b\\\\c\\nd}e,{é",other=""} +Inf',
    'qblockd_test 1.5e-7',
    'qblockd_test_sum NaN',
  ]);
});

describe('the option', () => {
  test('an address and what belongs to it', () => {
    expect(parseMetricsOption('[::1]:9100,token=a,,b=c,remote=on,token-file=/x')).toEqual({
      ...{ host: '::1', port: '9100', token: 'a,b=c', tokenFile: '/x', remote: true },
    });
  });

  test.each([
    ['9100', "Invalid address '9100', expected: HOST:PORT"],
    ['h:1,remote=yes', "Parameter 'remote' expects 'on' or 'off'"],
    ['h:1,token=', "Invalid parameter 'token'"],
    ['h:1,x=y', "Invalid parameter 'x'"],
  ])('%s', (text, message) => {
    expect(() => parseMetricsOption(text)).toThrow(message);
  });

  test.each([
    ['192.0.2.1:0', "need 'remote=on'"],
    ['127.0.0.1:99999', "Invalid port '99999'"],
    ['127.0.0.1:0,token-file=/nonexistent/x', "Could not create '/nonexistent/x'"],
  ])('refused: %s', (text, message) => {
    const { status, stderr } = spawnSync(daemonProgram('qblockd'), ['--metrics', text]);
    expect(status).toBe(1);
    expect(String(stderr)).toContain(message);
  });
});

test('a configuration file may ask for them', async () => {
  const dir = makeScratchDir();
  const port = await freePort();
  writeFileSync(path.join(dir, 'c.yaml'), `metrics: "127.0.0.1:${port},token=t"\n`);
  const daemon = await startDaemon('qblockd', { dir, args: ['--config', '$DIR/c.yaml'] });
  expect((await ask(port, '/metrics?token=t')).status).toBe(200);
  await daemon.stop();
  rmSync(dir, { recursive: true });
});
