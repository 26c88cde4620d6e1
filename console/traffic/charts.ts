/** The charts: throughput, requests, latency over the last minutes, by uPlot. Redrawn when there is a new point. */

import uPlot from 'uplot';
import type { Feed, Snapshot } from '../data/feed.ts';
import { formatBytes, formatCount, formatMicroseconds, formatTime, shown } from '../data/format.ts';
import { KEPT_POINTS, type Point } from '../data/traffic.ts';
import { byId, fill, h, setText } from '../page/dom.ts';
import { colorOf } from '../page/theme.ts';

interface Line {
  readonly label: string;
  /** Class that gives its colour. */
  readonly color: string;
  readonly value: (point: Point) => number | null;
}

interface Chart {
  readonly id: string;
  readonly title: string;
  readonly format: (value: number) => string;
  readonly lines: readonly Line[];
  /** The scale reaches at least to here: little is not made to look like much. */
  readonly least: number;
  /** Steps of the scale; null: uPlot's own. */
  readonly steps: number[] | null;
}

/** Steps of bytes: powers of two. */
const BYTE_STEPS = Array.from({ length: 45 }, (_, power) => 2 ** power);

const CHARTS: readonly Chart[] = [
  {
    id: 'throughput',
    title: 'Throughput',
    least: 4096,
    steps: BYTE_STEPS,
    format: (value) => `${formatBytes(Math.round(value))}/s`,
    lines: [
      { label: 'read', color: 'series-1', value: (point) => point.readBytes },
      { label: 'written', color: 'series-2', value: (point) => point.writtenBytes },
    ],
  },
  {
    id: 'requests',
    title: 'Requests',
    least: 10,
    steps: null,
    format: (value) => `${formatCount(value)}/s`,
    lines: [{ label: 'requests', color: 'series-1', value: (point) => point.operations }],
  },
  {
    id: 'latency',
    title: 'Latency',
    least: 20,
    steps: null,
    format: formatMicroseconds,
    lines: [
      { label: 'mean', color: 'series-1', value: (point) => point.meanUs },
      { label: '99 %', color: 'series-3', value: (point) => point.p99Us },
    ],
  },
];

const HEIGHT = 132;
const AXIS_WIDTH = 72;

/** One chart and its numbers of the moment. */
interface Drawn {
  readonly chart: Chart;
  readonly place: HTMLElement;
  readonly values: readonly HTMLElement[];
  plot: uPlot | null;
}

function makePlot({ chart, place }: Drawn, width: number): uPlot {
  const text = colorOf('chart-text');
  const grid = { stroke: colorOf('chart-grid'), width: 1 };
  const font = '11px system-ui, sans-serif';
  return new uPlot(
    {
      width,
      height: HEIGHT,
      pxAlign: 0,
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { time: true },
        // From nothing up: small changes of large numbers are not made to look large.
        y: { range: (_plot, _min, max) => [0, Math.max(chart.least, (max ?? 0) * 1.1)] },
      },
      axes: [
        {
          ...{ stroke: text, grid: { show: false }, ticks: grid, font, size: 28, space: 74 },
          values: (_plot, splits) => splits.map((second) => formatTime(second * 1000).slice(0, 8)),
        },
        {
          ...{ stroke: text, grid, ticks: { show: false }, font, size: AXIS_WIDTH, space: 34 },
          values: (_plot, splits) => splits.map((value) => chart.format(value)),
          ...(chart.steps !== null && { incrs: chart.steps }),
        },
      ],
      series: [
        {},
        ...chart.lines.map(({ label, color }, index) => ({
          ...{ label, stroke: colorOf(color), width: 1.75, points: { show: false } },
          ...(index === 0 && { fill: colorOf(`${color}-fill`) }),
        })),
      ],
    },
    [[], ...chart.lines.map(() => [])],
    place,
  );
}

export interface Charts {
  show(snapshot: Snapshot): void;
  /** Colours are others now. */
  recolor(): void;
}

export function createCharts(feed: Feed): Charts {
  const area = byId('charts');
  const empty = byId('charts-empty');
  const select = byId('charts-export') as HTMLSelectElement;
  let exportId: string | null = null;
  let listed = '';

  const drawn: readonly Drawn[] = CHARTS.map((chart) => {
    const place = h('div', { class: 'plot', 'aria-hidden': 'true' });
    const values = chart.lines.map(() => h('output', { class: 'chart-value' }, '–'));
    const legend = chart.lines.map((line, index) =>
      h('span', { class: `chart-key ${line.color}` }, h('i', {}), `${line.label} `, values[index] ?? null),
    );
    area.append(
      h(
        'figure',
        { class: 'chart', id: `chart-${chart.id}` },
        h('figcaption', {}, h('strong', {}, chart.title), h('span', { class: 'chart-keys' }, ...legend)),
        place,
      ),
    );
    return { chart, place, values, plot: null };
  });

  const redraw = (): void => {
    const points = feed.traffic.points(exportId);
    const times = points.map(({ timeS }) => timeS);
    const last = points.at(-1);
    for (const item of drawn) {
      const width = item.place.clientWidth;
      if (width === 0) continue;
      item.plot ??= makePlot(item, width);
      if (item.plot.width !== width) item.plot.setSize({ width, height: HEIGHT });
      const end = last?.timeS ?? Date.now() / 1000;
      item.plot.batch(() => {
        item.plot?.setData([
          times,
          ...item.chart.lines.map(({ value }) => points.map(value)),
        ] as uPlot.AlignedData);
        item.plot?.setScale('x', { min: end - Math.min(KEPT_POINTS, Math.max(60, points.length)), max: end });
      });
      for (const [index, { value }] of item.chart.lines.entries()) {
        const now = last === undefined ? null : value(last);
        const output = item.values[index];
        if (output !== undefined) setText(output, now === null ? '–' : item.chart.format(now));
      }
    }
  };

  const listExports = (snapshot: Snapshot): void => {
    const ids = snapshot.details.map(({ id }) => id).toReversed();
    const text = JSON.stringify(ids);
    if (text === listed) return;
    listed = text;
    if (exportId !== null && !ids.includes(exportId)) exportId = null;
    // A value of its own for all: an export may have any name.
    fill(
      select,
      h('option', { value: '' }, 'All exports'),
      ...ids.map((id) => h('option', { value: `=${id}` }, shown(id))),
    );
    select.value = exportId === null ? '' : `=${exportId}`;
    empty.hidden = ids.length > 0;
    area.hidden = ids.length === 0;
    select.hidden = ids.length === 0;
  };

  select.addEventListener('change', () => {
    exportId = select.value === '' ? null : select.value.slice(1);
    redraw();
  });
  new ResizeObserver(redraw).observe(area);

  return {
    show: (snapshot) => {
      listExports(snapshot);
      redraw();
    },
    recolor: () => {
      for (const item of drawn) {
        item.plot?.destroy();
        item.plot = null;
      }
      redraw();
    },
  };
}
