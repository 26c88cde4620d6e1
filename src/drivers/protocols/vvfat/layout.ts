/**
 * Where things are on the disk: partition table, boot sector, file allocation tables, root folder, clusters; and the
 * sectors that say so.
 *
 * A hard disk has one partition that begins at sector 63, a floppy none. Source of the facts: Microsoft's FAT32 File
 * System Specification 1.03; sizes and geometry are the original's.
 */

export const SECTOR_BYTES = 512;
export const ENTRY_BYTES = 32;
const ROOT_ENTRIES = 512;
const SERIAL = 0xfabe1afd;
const TABLES = 2;
const MAX_LABEL_BYTES = 11;

export interface Layout {
  readonly fatType: 12 | 16 | 32;
  readonly sectors: number;
  /** Sector of the boot sector; the sectors below count from it. */
  readonly start: number;
  readonly tableStart: number;
  readonly tableSectors: number;
  /** Of FAT12 and FAT16; FAT32 has its root folder in clusters. */
  readonly rootStart: number;
  readonly rootSectors: number;
  readonly dataStart: number;
  readonly clusterSectors: number;
  readonly clusterBytes: number;
  /** Numbers of clusters are 2 to clusters + 1. */
  readonly clusters: number;
  readonly isFloppy: boolean;
  readonly headSectors: number;
  readonly heads: number;
}

interface Geometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly headSectors: number;
  readonly clusterSectors: number;
}

function geometryOf(fatType: 0 | 12 | 16 | 32, isFloppy: boolean): Geometry {
  if (isFloppy) {
    const isSmall = fatType === 12;
    return { cylinders: 80, heads: 2, headSectors: isSmall ? 18 : 36, clusterSectors: isSmall ? 1 : 2 };
  }
  const cylinders = fatType === 12 ? 64 : 1024;
  return { cylinders, heads: 16, headSectors: 63, clusterSectors: fatType === 32 ? 8 : 16 };
}

function tableBytes(fatType: 12 | 16 | 32, clusters: number): number {
  const entries = clusters + 2;
  return fatType === 12 ? Math.ceil((entries * 3) / 2) : entries * (fatType / 8);
}

/** `fatType` 0: what suits the disk. */
export function createLayout(wanted: 0 | 12 | 16 | 32, isFloppy: boolean): Layout {
  const geometry = geometryOf(wanted, isFloppy);
  const fatType = wanted === 0 ? (isFloppy ? 12 : 16) : wanted;
  const { heads, headSectors, clusterSectors } = geometry;
  const sectors = geometry.cylinders * heads * headSectors;
  const start = isFloppy ? 0 : headSectors;
  const reserved = fatType === 32 ? 32 : 1;
  const rootSectors = fatType === 32 ? 0 : (ROOT_ENTRIES * ENTRY_BYTES) / SECTOR_BYTES;
  const room = sectors - start - reserved - rootSectors;
  // Tables for more clusters than there will be: what they take is no cluster.
  const tableSectors = Math.ceil(tableBytes(fatType, Math.floor(room / clusterSectors)) / SECTOR_BYTES);
  const rootStart = reserved + TABLES * tableSectors;
  const dataStart = rootStart + rootSectors;
  return {
    fatType,
    sectors,
    start,
    tableStart: reserved,
    tableSectors,
    rootStart,
    rootSectors,
    dataStart,
    clusterSectors,
    clusterBytes: clusterSectors * SECTOR_BYTES,
    clusters: Math.floor((sectors - start - dataStart) / clusterSectors),
    isFloppy,
    headSectors,
    heads,
  };
}

/** Marks of the last cluster of a chain. */
export function endMark({ fatType }: Layout): number {
  return fatType === 12 ? 0xfff : fatType === 16 ? 0xffff : 0x0fffffff;
}

/** Eleven bytes of a name on the disk, filled up with spaces. */
export function paddedLabel(label: string): Buffer {
  const bytes = Buffer.alloc(MAX_LABEL_BYTES, ' ');
  bytes.write(label, 0, 'latin1');
  return bytes;
}

function chs(sector: number, { heads, headSectors }: Layout): Buffer {
  const cylinder = Math.floor(sector / heads / headSectors);
  if (cylinder > 1023) return Buffer.from([0xff, 0xff, 0xff]);
  const head = Math.floor(sector / headSectors) % heads;
  return Buffer.from([head, (sector % headSectors) + 1 + ((cylinder >> 8) << 6), cylinder & 255]);
}

/** The partition table of a hard disk. */
export function partitionSector(layout: Layout): Buffer {
  const sector = Buffer.alloc(SECTOR_BYTES);
  const length = layout.sectors - layout.start;
  sector.writeUInt32LE(SERIAL, 440);
  sector[446] = 0x80;
  chs(layout.start, layout).copy(sector, 447);
  sector[450] = layout.fatType === 12 ? 0x01 : layout.fatType === 16 ? 0x06 : 0x0c;
  chs(layout.sectors - 1, layout).copy(sector, 451);
  sector.writeUInt32LE(layout.start, 454);
  sector.writeUInt32LE(length, 458);
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

/** The sectors in front of the tables. */
export function reservedSectors(layout: Layout, label: string, usedClusters: number): Buffer {
  const { fatType, isFloppy } = layout;
  const bytes = Buffer.alloc(layout.tableStart * SECTOR_BYTES);
  const length = layout.sectors - layout.start;
  Buffer.from([0xeb, fatType === 32 ? 0x58 : 0x3c, 0x90]).copy(bytes);
  bytes.write('MSWIN4.1', 3, 'latin1');
  bytes.writeUInt16LE(SECTOR_BYTES, 11);
  bytes[13] = layout.clusterSectors;
  bytes.writeUInt16LE(layout.tableStart, 14);
  bytes[16] = TABLES;
  bytes.writeUInt16LE(fatType === 32 ? 0 : ROOT_ENTRIES, 17);
  bytes.writeUInt16LE(length < 65536 ? length : 0, 19);
  bytes[21] = isFloppy ? 0xf0 : 0xf8;
  bytes.writeUInt16LE(fatType === 32 ? 0 : layout.tableSectors, 22);
  bytes.writeUInt16LE(layout.headSectors, 24);
  bytes.writeUInt16LE(layout.heads, 26);
  bytes.writeUInt32LE(layout.start, 28);
  bytes.writeUInt32LE(length < 65536 ? 0 : length, 32);
  if (fatType === 32) {
    bytes.writeUInt32LE(layout.tableSectors, 36);
    bytes.writeUInt32LE(2, 44);
    bytes.writeUInt16LE(1, 48);
    bytes.writeUInt16LE(6, 50);
  }
  const more = fatType === 32 ? 64 : 36;
  bytes[more] = isFloppy ? 0 : 0x80;
  bytes[more + 2] = 0x29;
  bytes.writeUInt32LE(SERIAL, more + 3);
  paddedLabel(label).copy(bytes, more + 7);
  bytes.write(`FAT${fatType}   `, more + 18, 'latin1');
  bytes.writeUInt16LE(0xaa55, 510);
  if (fatType === 32) {
    bytes.writeUInt32LE(0x41615252, 512);
    bytes.writeUInt32LE(0x61417272, 512 + 484);
    bytes.writeUInt32LE(layout.clusters - usedClusters, 512 + 488);
    bytes.writeUInt32LE(2 + usedClusters, 512 + 492);
    bytes.writeUInt32LE(0xaa550000, 512 + 508);
    // The copy.
    bytes.copy(bytes, 6 * SECTOR_BYTES, 0, 2 * SECTOR_BYTES);
  }
  return bytes;
}

/** Entry `index` of a table. */
export function tableEntry({ fatType }: Layout, table: Buffer, index: number): number {
  if (fatType === 32) return table.readUInt32LE(index * 4) & 0x0fffffff;
  if (fatType === 16) return table.readUInt16LE(index * 2);
  const pair = table.readUInt16LE(Math.floor(index * 1.5));
  return index % 2 === 0 ? pair & 0xfff : pair >> 4;
}

export function setTableEntry({ fatType }: Layout, table: Buffer, index: number, value: number): void {
  if (fatType === 32) table.writeUInt32LE(value, index * 4);
  else if (fatType === 16) table.writeUInt16LE(value, index * 2);
  else {
    const at = Math.floor(index * 1.5);
    const pair = table.readUInt16LE(at);
    table.writeUInt16LE(index % 2 === 0 ? (pair & 0xf000) | value : (pair & 0xf) | (value << 4), at);
  }
}
