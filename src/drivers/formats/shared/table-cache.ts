/**
 * A cache of metadata tables (slices of L2 tables, refcount blocks, allocation tables) in memory, write-back.
 *
 * Lookup is synchronous and takes no lock: between two awaits nobody else runs, so whoever finds a table may read and
 * change it at once. Reading a table that is not there is the only thing that waits. Dirty tables are written by
 * the format, which knows the order in which metadata must reach the disk; this file knows nothing of it.
 *
 * Replacement is a clock: a hit sets one flag, so the hit path allocates nothing. Dirty and pinned tables are never
 * dropped: rather does the cache grow for a while.
 */

import { allocateIoMemory, type IoMemory } from '../../../aio/memory.ts';
import { assert } from '../../../errors/error.ts';

export interface CachedTable {
  /** Host offset in bytes. */
  readonly offset: number;
  readonly mem: IoMemory;
  readonly view: DataView;
  /** Differs from the disk. Set by whoever changes the table, cleared by the write-back. */
  dirty: boolean;
  /** Nothing on the disk points to it yet, so it may be written before what its entries depend on. */
  unlinked: boolean;
  /** Users that count on the table staying in the cache. */
  pins: number;
  /** Used since the clock's hand came by. */
  recent: boolean;
}

const MAX_SPARES = 8;

export class TableCache {
  readonly tableBytes: number;
  readonly #tables = new Map<number, CachedTable>();
  readonly #loading = new Map<number, Promise<CachedTable>>();
  readonly #dirty = new Set<CachedTable>();
  #capacity: number;
  /** Memory of tables that were dropped for want of room: used again, since making it costs more than reading. */
  readonly #spares: IoMemory[] = [];

  /** `capacity` in tables. */
  constructor(tableBytes: number, capacity: number) {
    this.tableBytes = tableBytes;
    this.#capacity = capacity;
  }

  get capacity(): number {
    return this.#capacity;
  }

  set capacity(tables: number) {
    this.#capacity = tables;
    this.#trim();
  }

  get size(): number {
    return this.#tables.size;
  }

  get dirtyCount(): number {
    return this.#dirty.size;
  }

  /** The table at host offset `offset` if it is in memory. */
  get(offset: number): CachedTable | undefined {
    const table = this.#tables.get(offset);
    if (table !== undefined) table.recent = true;
    return table;
  }

  /** Whether somebody counts on the table at `offset` staying. */
  isPinned(offset: number): boolean {
    return (this.#tables.get(offset)?.pins ?? 0) > 0;
  }

  /** The table at `offset`, read by `read` if need be; concurrent calls share one read. */
  load(offset: number, read: (mem: IoMemory) => Promise<void>): Promise<CachedTable> {
    const known = this.get(offset);
    if (known !== undefined) return Promise.resolve(known);
    let pending = this.#loading.get(offset);
    if (pending === undefined) {
      pending = this.#read(offset, read).finally(() => this.#loading.delete(offset));
      this.#loading.set(offset, pending);
    }
    return pending;
  }

  async #read(offset: number, read: (mem: IoMemory) => Promise<void>): Promise<CachedTable> {
    const mem = this.#memory();
    await read(mem);
    // Somebody may have created the table meanwhile: what is in the cache is newer than what is on the disk.
    return this.#tables.get(offset) ?? this.#insert(offset, mem);
  }

  /** As load, when `tryRead` can read within this turn; undefined: nothing has been done. */
  tryLoad(offset: number, tryRead: (mem: IoMemory) => boolean): CachedTable | undefined {
    const mem = this.#memory();
    if (tryRead(mem)) return this.#insert(offset, mem);
    this.#spares.push(mem);
    return undefined;
  }

  /** A new table of zeroes at `offset`, dirty, replacing whatever the cache had there. */
  create(offset: number): CachedTable {
    this.drop(offset);
    const mem = this.#memory();
    mem.buf.fill(0);
    const table = this.#insert(offset, mem);
    this.markDirty(table);
    return table;
  }

  #memory(): IoMemory {
    return this.#spares.pop() ?? allocateIoMemory(this.tableBytes);
  }

  #insert(offset: number, mem: IoMemory): CachedTable {
    this.#trim(1);
    const view = new DataView(mem.buf.buffer, mem.buf.byteOffset, mem.buf.byteLength);
    const table: CachedTable = {
      offset,
      mem,
      view,
      dirty: false,
      unlinked: false,
      pins: 0,
      recent: true,
    };
    this.#tables.set(offset, table);
    return table;
  }

  markDirty(table: CachedTable): void {
    if (table.dirty) return;
    table.dirty = true;
    this.#dirty.add(table);
  }

  markClean(table: CachedTable): void {
    table.dirty = false;
    this.#dirty.delete(table);
  }

  /** Tables that differ from the disk, in no order. */
  dirtyTables(): CachedTable[] {
    return [...this.#dirty];
  }

  /** Forgets the table at `offset` with its changes: the cluster is no longer a table. */
  drop(offset: number): void {
    const table = this.#tables.get(offset);
    if (table === undefined) return;
    assert(table.pins === 0, 'pinned table dropped');
    this.#tables.delete(offset);
    this.#dirty.delete(table);
  }

  /** Forgets everything; the caller has seen to it that nothing dirty is lost. */
  clear(): void {
    this.#tables.clear();
    this.#dirty.clear();
  }

  /** Forgets what nobody has used since the last call. */
  dropUnused(): void {
    for (const table of this.#tables.values()) {
      if (!table.recent && !table.dirty && table.pins === 0) this.#tables.delete(table.offset);
      table.recent = false;
    }
  }

  /** Makes room for `extra` tables, as far as clean and unused ones can go. */
  #trim(extra = 0): void {
    if (this.#tables.size + extra <= this.#capacity) return;
    // A Map keeps insertion order: taking from the front and putting recent ones back is the hand of the clock.
    let looks = this.#tables.size * 2;
    for (const table of this.#tables.values()) {
      if (this.#tables.size + extra <= this.#capacity || looks-- <= 0) return;
      if (table.dirty || table.pins > 0 || table.recent) {
        table.recent = false;
        this.#tables.delete(table.offset);
        this.#tables.set(table.offset, table);
      } else {
        this.#tables.delete(table.offset);
        // Whoever needs a table across an await pins it: nobody looks at this one any more.
        if (this.#spares.length < MAX_SPARES) this.#spares.push(table.mem);
      }
    }
  }
}
