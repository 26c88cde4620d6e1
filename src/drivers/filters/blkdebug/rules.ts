/**
 * Rules of blkdebug: what happens at an event, and which requests fail.
 *
 * - inject-error: from its event on (in its state, if it has one) the rule is in force: requests of its kind that touch
 *   its sector fail. An event that puts rules into force ends those of earlier events. Of several the first counts.
 * - set-state: the state changes when all rules of the event have been looked at; of several the first counts.
 * - A breakpoint suspends the next request that meets its event, and is gone.
 *
 * The first state is 1; the event `none` is the opening of the node. Here: the bookkeeping. Not here: the driver
 * (blkdebug.ts), the file that rules may come from (config-file.ts).
 * Source of the facts: QEMU documentation, "blkdebug"; QMP reference, BlkdebugInjectErrorOptions; its behaviour.
 */

import type { BlkdebugEvent, BlkdebugIOType } from '../../../../schema/generated/types.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import type { ConfigGroup, ConfigValue, GroupDefinition } from './config-file.ts';
import { typedValue } from './config-file.ts';

const SECTOR_BYTES = 512;
const MAX_ERRNO_BITS = 32;

/** The groups of a rules file. */
export const RULE_GROUPS: Readonly<Record<RuleKind, GroupDefinition>> = {
  'inject-error': {
    ...{ event: 'string', state: 'number', iotype: 'string', errno: 'number', sector: 'number' },
    ...{ once: 'boolean', immediately: 'boolean', 'delay-ns': 'number' },
  },
  'set-state': { event: 'string', state: 'number', new_state: 'number' },
};

type RuleKind = 'inject-error' | 'set-state';

interface InjectRule {
  readonly kind: 'inject-error';
  readonly event: BlkdebugEvent;
  /** 0: any. */
  readonly state: number;
  readonly iotypes: ReadonlySet<BlkdebugIOType>;
  /** Positive; 0: requests that meet the rule do not fail. */
  readonly errno: number;
  /** Null: any. */
  readonly sector: number | null;
  readonly once: boolean;
  readonly immediately: boolean;
  /** Before it fails, or goes on where errno is 0. */
  readonly delayNs: number;
}

interface StateRule {
  readonly kind: 'set-state';
  readonly event: BlkdebugEvent;
  readonly state: number;
  readonly newState: number;
}

interface Breakpoint {
  readonly event: BlkdebugEvent;
  readonly tag: string;
}

interface Suspended {
  readonly tag: string;
  readonly wake: () => void;
}

export interface RuleBook {
  state: number;
  rules: (InjectRule | StateRule)[];
  inForce: InjectRule[];
  /** Newest first. */
  breakpoints: Breakpoint[];
  suspended: Suspended[];
}

const EVENTS: Readonly<Record<BlkdebugEvent, true>> = {
  l1_update: true,
  l1_grow_alloc_table: true,
  l1_grow_write_table: true,
  l1_grow_activate_table: true,
  l2_load: true,
  l2_update: true,
  l2_update_compressed: true,
  l2_alloc_cow_read: true,
  l2_alloc_write: true,
  read_aio: true,
  read_backing_aio: true,
  read_compressed: true,
  write_aio: true,
  write_compressed: true,
  vmstate_load: true,
  vmstate_save: true,
  cow_read: true,
  cow_write: true,
  reftable_load: true,
  reftable_grow: true,
  reftable_update: true,
  refblock_load: true,
  refblock_update: true,
  refblock_update_part: true,
  refblock_alloc: true,
  refblock_alloc_hookup: true,
  refblock_alloc_write: true,
  refblock_alloc_write_blocks: true,
  refblock_alloc_write_table: true,
  refblock_alloc_switch_table: true,
  cluster_alloc: true,
  cluster_alloc_bytes: true,
  cluster_free: true,
  flush_to_os: true,
  flush_to_disk: true,
  pwritev_rmw_head: true,
  pwritev_rmw_after_head: true,
  pwritev_rmw_tail: true,
  pwritev_rmw_after_tail: true,
  pwritev: true,
  pwritev_zero: true,
  pwritev_done: true,
  empty_image_prepare: true,
  l1_shrink_write_table: true,
  l1_shrink_free_l2_clusters: true,
  cor_write: true,
  cluster_alloc_space: true,
  none: true,
};

const IO_TYPES: readonly BlkdebugIOType[] = [
  'read',
  'write',
  'write-zeroes',
  'discard',
  'flush',
  'block-status',
];
const DEFAULT_IO_TYPES: ReadonlySet<BlkdebugIOType> = new Set(
  IO_TYPES.filter((type) => type !== 'block-status'),
);

export function createRuleBook(): RuleBook {
  return { state: 1, rules: [], inForce: [], breakpoints: [], suspended: [] };
}

// ---- making rules --------------------------------------------------------------------------------------------

function eventOf(name: ConfigValue | undefined): BlkdebugEvent {
  if (typeof name !== 'string') throw new BlockError('Missing event name for rule');
  if (!Object.hasOwn(EVENTS, name)) throw new BlockError(`invalid parameter value: ${name}`);
  return name as BlkdebugEvent;
}

/** Adds the rules of the groups: those that fail requests first, as the original does. */
export function addRules(book: RuleBook, groups: readonly ConfigGroup[]): void {
  const ofKind = (kind: RuleKind) => groups.filter(({ name }) => name === kind);
  for (const { values } of ofKind('inject-error')) book.rules.push(injectRule(values));
  for (const { values } of ofKind('set-state')) {
    const { event, state = 0, new_state: newState = 0 } = values;
    book.rules.push({
      kind: 'set-state',
      event: eventOf(event),
      state: Number(state),
      newState: Number(newState),
    });
  }
}

function injectRule(values: ConfigGroup['values']): InjectRule {
  const { event, state = 0, iotype, errno = E.EIO, sector = -1, once, immediately } = values;
  const { 'delay-ns': delayNs = 0 } = values;
  const named = eventOf(event);
  return {
    kind: 'inject-error',
    event: named,
    state: Number(state),
    iotypes: iotype === undefined ? DEFAULT_IO_TYPES : new Set([ioType(String(iotype))]),
    errno: Math.max(0, Number(BigInt.asIntN(MAX_ERRNO_BITS, BigInt(Number(errno))))),
    sector: Number(sector) === -1 ? null : Number(sector),
    once: once === true,
    immediately: immediately === true,
    delayNs: Math.max(0, Number(delayNs)),
  };
}

function ioType(name: string): BlkdebugIOType {
  const type = IO_TYPES.find((known) => known === name);
  if (type === undefined) throw new BlockError(`invalid parameter value: ${name}`);
  return type;
}

/**
 * Groups from a node's options: a list of records, or (from names and tools) one record, or records by number, whose
 * values may be text.
 */
export function groupsOfOptions(kind: RuleKind, given: unknown): ConfigGroup[] {
  if (given === undefined) return [];
  const types = RULE_GROUPS[kind];
  const record = given as Readonly<Record<string, unknown>>;
  const isNumbered = !Array.isArray(given) && Object.keys(record).every((key) => /^\d+$/.test(key));
  const list = Array.isArray(given) || isNumbered ? numbered(kind, record) : [record];
  return list.map((each) => {
    const values: Record<string, ConfigValue> = {};
    for (const [key, value] of Object.entries(each)) {
      const type = Object.hasOwn(types, key) ? types[key] : undefined;
      if (type === undefined) throw new BlockError(`[${kind}] section doesn't support the option '${key}'`);
      values[key] = typeof value === 'string' ? typedValue(key, value, type) : (value as ConfigValue);
    }
    return { name: kind, values };
  });
}

/** Elements 0, 1, ... in order; anything else among the keys is refused. */
function numbered(kind: RuleKind, record: Readonly<Record<string, unknown>>): Record<string, unknown>[] {
  const list: Record<string, unknown>[] = [];
  const keys = Object.keys(record);
  for (let at = 0; at < keys.length; at++) {
    const element = record[at];
    if (typeof element !== 'object' || element === null) {
      const [key = ''] = keys.filter((name) => Number(name) >= at);
      const inner = Object.keys((record[key] as object | undefined) ?? {})[0];
      throw new BlockError(`Unused option '${inner === undefined ? key : `${key}.${inner}`}' for [${kind}]`);
    }
    list.push(element as Record<string, unknown>);
  }
  return list;
}

// ---- events and requests -------------------------------------------------------------------------------------

/** An event has come. Null: go on at once; else when the promise resolves. */
export function happened(
  book: RuleBook,
  event: string,
  report: (text: string) => void,
): Promise<void> | null {
  let newState: number | null = null;
  let injected: InjectRule[] | null = null;
  for (const rule of book.rules) {
    if (rule.event !== event || (rule.state !== 0 && rule.state !== book.state)) continue;
    if (rule.kind === 'set-state') newState ??= rule.newState;
    else {
      injected ??= [];
      injected.push(rule);
    }
  }
  if (injected !== null) book.inForce = injected;
  if (newState !== null) book.state = newState;
  return book.breakpoints.length === 0 ? null : suspendAt(book, event, report);
}

function suspendAt(book: RuleBook, event: string, report: (text: string) => void): Promise<void> | null {
  const met = book.breakpoints.filter((point) => point.event === event);
  if (met.length === 0) return null;
  book.breakpoints = book.breakpoints.filter((point) => point.event !== event);
  const wakes = met.map(
    ({ tag }) =>
      new Promise<void>((wake) => {
        book.suspended.push({ tag, wake });
        report(`blkdebug: Suspended request '${tag}'\n`);
      }),
  );
  return Promise.all(wakes).then(() => undefined);
}

/** What a request meets; errno 0: it does not fail. */
export interface Fault {
  readonly errno: number;
  readonly immediately: boolean;
  readonly delayNs: number;
}

const NO_FAULT: Fault = { errno: 0, immediately: true, delayNs: 0 };

/** The fault for a request over [offset, offset+bytes), both in bytes. */
export function faultFor(book: RuleBook, type: BlkdebugIOType, offset: number, bytes: number): Fault {
  const rule = book.inForce.find(
    ({ iotypes, sector }) => iotypes.has(type) && touches(sector, offset, bytes),
  );
  if (rule === undefined || (rule.errno === 0 && rule.delayNs === 0)) return NO_FAULT;
  if (rule.once) {
    book.inForce = book.inForce.filter((other) => other !== rule);
    book.rules = book.rules.filter((other) => other !== rule);
  }
  return rule;
}

function touches(sector: number | null, offset: number, bytes: number): boolean {
  if (sector === null) return true;
  const at = sector * SECTOR_BYTES;
  return bytes > 0 && at >= offset && at < offset + bytes;
}

// ---- breakpoints ---------------------------------------------------------------------------------------------

/** Sets a breakpoint; false when there is no such event. */
export function addBreakpoint(book: RuleBook, event: string, tag: string): boolean {
  if (!Object.hasOwn(EVENTS, event)) return false;
  book.breakpoints.unshift({ event: event as BlkdebugEvent, tag });
  return true;
}

/** Lets the first request suspended under the tag go on (all of them with `all`); false when there is none. */
export function resumeSuspended(
  book: RuleBook,
  tag: string,
  report: (text: string) => void,
  all = false,
): boolean {
  const met = book.suspended.filter((request) => request.tag === tag).slice(0, all ? undefined : 1);
  book.suspended = book.suspended.filter((request) => !met.includes(request));
  for (const { wake } of met) {
    report(`blkdebug: Resuming request '${tag}'\n`);
    wake();
  }
  return met.length > 0;
}

/** Removes the breakpoints of the tag and lets its requests go on; false when there were no breakpoints. */
export function removeBreakpoints(book: RuleBook, tag: string, report: (text: string) => void): boolean {
  const count = book.breakpoints.length;
  book.breakpoints = book.breakpoints.filter((point) => point.tag !== tag);
  resumeSuspended(book, tag, report, true);
  return book.breakpoints.length < count;
}
