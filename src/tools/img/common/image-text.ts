/** Images and snapshots as people read them: what `info` and `snapshot -l` print. */

import type { ImageInfo, SnapshotInfo } from '../../../../schema/generated/types.ts';
import { memberLines } from '../../common/member-lines.ts';
import { humanSize } from '../../common/size.ts';

/** The description of an image, with a line end behind each line. */
export function describeImage(info: ImageInfo): string {
  const actual = info['actual-size'];
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${humanSize(info['virtual-size'])} (${BigInt(info['virtual-size'])} bytes)`,
    `disk size: ${actual === undefined ? 'unavailable' : humanSize(actual)}`,
  ];
  if (info.encrypted === true) lines.push('encrypted: yes');
  if (info['cluster-size'] !== undefined) lines.push(`cluster_size: ${info['cluster-size']}`);
  if (info['dirty-flag'] === true) lines.push('cleanly shut down: no');
  lines.push(...backingLines(info));
  if (info.snapshots !== undefined) lines.push('Snapshot list:', ...snapshotLines(info.snapshots));
  const specific = memberLines(info['format-specific']?.data ?? {}, '    ');
  if (specific.length > 0) lines.push('Format specific information:', ...specific);
  if (info.limits !== undefined) lines.push('Limits:', ...memberLines(info.limits, '    '));
  return `${lines.join('\n')}\n`;
}

function backingLines(info: ImageInfo): string[] {
  const name = info['backing-filename'];
  if (name === undefined) return [];
  const full = info['full-backing-filename'];
  let line = `backing file: ${name}`;
  if (full === undefined) line += ' (cannot determine actual path)';
  else if (full !== name) line += ` (actual path: ${full})`;
  const format = info['backing-filename-format'];
  return format === undefined ? [line] : [line, `backing file format: ${format}`];
}

const SNAPSHOT_HEADING = 'ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT';

/** The table of snapshots with its heading. */
export function snapshotLines(snapshots: readonly SnapshotInfo[]): string[] {
  return [SNAPSHOT_HEADING, ...snapshots.map(snapshotLine)];
}

function snapshotLine(snapshot: SnapshotInfo): string {
  const { id, name } = snapshot;
  const size = humanSize(snapshot['vm-state-size']).padStart(8);
  const date = dateText(snapshot['date-sec']).padStart(20);
  const clock = clockText(snapshot).padStart(13);
  const icount = (snapshot.icount === undefined ? '' : String(snapshot.icount)).padStart(11);
  return `${padded(id, 9)} ${padded(name, 16)} ${size}${date}${clock}${icount}`;
}

/** Padded to so many bytes: columns are counted in bytes, as the original does. */
function padded(text: string, bytes: number): string {
  return text + ' '.repeat(Math.max(0, bytes - Buffer.byteLength(text)));
}

/** Local time. */
function dateText(seconds: number): string {
  const date = new Date(seconds * 1000);
  const two = (value: number): string => String(value).padStart(2, '0');
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

function clockText(snapshot: SnapshotInfo): string {
  const seconds = snapshot['vm-clock-sec'];
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  const milliseconds = Math.floor(snapshot['vm-clock-nsec'] / 1_000_000);
  const text = parts.map((part) => String(part).padStart(2, '0')).join(':');
  return `${text}.${String(milliseconds).padStart(3, '0')}`;
}
