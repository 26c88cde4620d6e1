/**
 * A new sparse extent without any grain.
 *
 * As the original lays it out: header, 20 sectors for a descriptor, redundant directory and tables, directory and
 * tables, then whole grains of data. A stream: header, descriptor, then an empty directory, footer and end, all of which
 * make way for the first grain.
 */

import type { BlockBackend } from '../../../block/backend.ts';
import { writeAt } from '../shared/creation.ts';
import {
  DESCRIPTOR_SECTORS,
  Marker,
  NEW_ENTRIES,
  NEW_GRAIN_SECTORS,
  newMarker,
  newSparseHeader,
  SECTOR_BYTES,
} from './sparse-header.ts';

const TABLE_SECTORS = (NEW_ENTRIES * 4) / SECTOR_BYTES;

interface ExtentOptions {
  readonly zeroedGrains: boolean;
  readonly compressed: boolean;
  readonly hasDescriptor: boolean;
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

export async function writeSparse(file: BlockBackend, bytes: number, options: ExtentOptions): Promise<void> {
  const capacitySectors = Math.ceil(bytes / SECTOR_BYTES);
  const tables = Math.ceil(capacitySectors / (NEW_GRAIN_SECTORS * NEW_ENTRIES));
  const directorySectors = Math.ceil((tables * 4) / SECTOR_BYTES);
  const front = 1 + DESCRIPTOR_SECTORS;
  const common = { ...options, capacitySectors };
  if (options.compressed) {
    const overhead = roundUp(front, NEW_GRAIN_SECTORS);
    const shape = { ...common, redundant: 0, overhead };
    const end = Buffer.alloc((directorySectors + 4) * SECTOR_BYTES);
    newMarker(Marker.grainDirectory, directorySectors).copy(end);
    newMarker(Marker.footer, 1).copy(end, (directorySectors + 1) * SECTOR_BYTES);
    newSparseHeader({ ...shape, directory: overhead + 1 }).copy(end, (directorySectors + 2) * SECTOR_BYTES);
    await file.truncate(overhead * SECTOR_BYTES + end.length, false, 'off');
    await writeAt(file, overhead * SECTOR_BYTES, end);
    await writeAt(file, 0, newSparseHeader({ ...shape, directory: null }));
    return;
  }
  const setSectors = directorySectors + tables * TABLE_SECTORS;
  const redundant = front;
  const directory = redundant + setSectors;
  const overhead = roundUp(directory + setSectors, NEW_GRAIN_SECTORS);
  await file.truncate(overhead * SECTOR_BYTES, false, 'off');
  for (const start of [redundant, directory]) {
    const entries = Buffer.alloc(directorySectors * SECTOR_BYTES);
    for (let i = 0; i < tables; i++)
      entries.writeUInt32LE(start + directorySectors + i * TABLE_SECTORS, i * 4);
    await writeAt(file, start * SECTOR_BYTES, entries);
  }
  await writeAt(file, 0, newSparseHeader({ ...common, redundant, directory, overhead }));
}
