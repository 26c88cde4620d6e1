/** Runs image checks as `qemu-img check` does, with the original and with ours, and gives both outcomes to compare. */

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import type { ImageCheckRequest, ImageCheckResult } from '../../../src/block/contract/image.ts';
import { Perm } from '../../../src/block/contract/request.ts';
import { wrapped } from '../../../src/block/io/callbacks.ts';
import type { BlockLayer } from '../../../src/block/layer.ts';
import { openFromOptions } from '../../../src/block/open/open.ts';
import { strerror } from '../../../src/errors/errno.ts';
import { errnoOf } from '../../../src/errors/error.ts';
import { limitMs } from '../../patience.ts';

export type Repair = 'none' | 'leaks' | 'all';

export interface CheckOutcome {
  readonly status: number;
  /** The lines of the report, without those of the corruption event. */
  readonly lines: readonly string[];
  /** Members of the JSON report that are counts; null when there is no report. */
  readonly counts: Readonly<Record<string, number>> | null;
}

/** Options of the node that a scenario needs besides the file: keys, data files. */
export type NodeOptions = Readonly<Record<string, unknown>>;

/** What the original says at open of bitmaps nobody kept up to date; the last line has no end. */
const OPEN_WARNING = /qemu-img: warning: a program lacking bitmap support.*\n.*to fix\./;

function reportLines(text: string): string[] {
  return text
    .replace(OPEN_WARNING, '')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('qcow2: '));
}

/** `qemu-img check --output=json`; `arguments_` replace the plain file name. */
export function checkTheirs(file: string, repair: Repair, arguments_: readonly string[] = []): CheckOutcome {
  const target = arguments_.length > 0 ? arguments_ : ['-f', 'qcow2', file];
  const fix = repair === 'none' ? [] : ['-r', repair];
  const { status, stdout, stderr } = spawnSync('qemu-img', ['check', '--output=json', ...fix, ...target], {
    encoding: 'utf8',
    timeout: limitMs(60_000),
    cwd: path.dirname(file),
    maxBuffer: 1 << 28,
  });
  const report = stdout === '' ? null : (JSON.parse(stdout) as Record<string, unknown>);
  const counts =
    report === null
      ? null
      : Object.fromEntries(
          Object.entries(report).filter((entry): entry is [string, number] => typeof entry[1] === 'number'),
        );
  return { status: status ?? -1, lines: reportLines(stderr), counts };
}

async function runCheck(
  layer: BlockLayer,
  file: string,
  repair: Repair,
  options: NodeOptions,
  checks: (one: (request: ImageCheckRequest) => Promise<ImageCheckResult>) => Promise<CheckOutcome>,
): Promise<CheckOutcome> {
  const readOnly = repair === 'none';
  const node = await openFromOptions(
    layer,
    { driver: 'qcow2', 'read-only': readOnly, file: { driver: 'file', filename: file }, ...options },
    'check',
  );
  const owner = { describe: () => 'the test', drainedBegin: () => undefined, drainedEnd: () => undefined };
  const perm = readOnly ? Perm.consistentRead : Perm.consistentRead | Perm.write | Perm.resize;
  const backend = await layer.createBackend(node, { perm, shared: Perm.all }, owner);
  try {
    return await checks((request) => wrapped.check(node, request));
  } finally {
    await backend.close().catch(() => undefined);
  }
}

/** The same with ours: a check, and a second one without repair when the first repaired something. */
export async function checkOurs(
  layer: BlockLayer,
  file: string,
  repair: Repair,
  options: NodeOptions = {},
): Promise<CheckOutcome> {
  const lines: string[] = [];
  const request = {
    report: (line: string) => void lines.push(line),
    reportError: (line: string) => void lines.push(`qemu-img: ${line}`),
  };
  const failed = (error: unknown): CheckOutcome => {
    lines.push(`qemu-img: Check failed: ${strerror(errnoOf(error))}`);
    return { status: 1, lines, counts: null };
  };
  try {
    return await runCheck(layer, file, repair, options, async (one) => {
      let result: ImageCheckResult;
      let fixed = { leaksFixed: 0, corruptionsFixed: 0 };
      try {
        result = await one({ fixLeaks: repair !== 'none', fixErrors: repair === 'all', ...request });
        if (result.leaksFixed > 0 || result.corruptionsFixed > 0) {
          fixed = result;
          result = await one({ fixLeaks: false, fixErrors: false, ...request });
        }
      } catch (error) {
        return failed(error);
      }
      if (result.checkErrors > 0) lines.push('qemu-img: Check failed');
      return { status: statusOf(result), lines, counts: countsOf(result, fixed) };
    });
  } catch (error) {
    lines.push(`qemu-img: Could not open '${file}': ${(error as Error).message}`);
    return { status: 1, lines, counts: null };
  }
}

function statusOf({ checkErrors, corruptions, leaks }: ImageCheckResult): number {
  if (checkErrors > 0) return 1;
  if (corruptions > 0) return 2;
  return leaks > 0 ? 3 : 0;
}

/** The counts under their names in the JSON report, where some are left out when zero. */
function countsOf(
  result: ImageCheckResult,
  fixed: Pick<ImageCheckResult, 'leaksFixed' | 'corruptionsFixed'>,
): Record<string, number> {
  const optional = {
    corruptions: result.corruptions,
    leaks: result.leaks,
    'corruptions-fixed': fixed.corruptionsFixed,
    'leaks-fixed': fixed.leaksFixed,
    'image-end-offset': result.imageEndOffset,
    'total-clusters': result.totalClusters,
    'allocated-clusters': result.allocatedClusters,
    'fragmented-clusters': result.fragmentedClusters,
    'compressed-clusters': result.compressedClusters,
  };
  return {
    'check-errors': result.checkErrors,
    ...Object.fromEntries(Object.entries(optional).filter(([, count]) => count !== 0)),
  };
}
