/**
 * The trace events there are, by the original's names where it has them, and what is written for each.
 *
 * Nodes are named, where the original prints addresses. Events that begin with "x_" are this daemon's own.
 */

/** Every event that does not come from a QMP command. */
export const EVENTS = [
  'bdrv_open_common',
  'x_bdrv_close',
  'blk_root_attach',
  'blk_root_detach',
  'blk_co_preadv',
  'blk_co_pwritev',
  'x_blk_co_pwrite_zeroes',
  'x_blk_co_pdiscard',
  'x_blk_co_flush',
  'bdrv_co_preadv_part',
  'bdrv_co_pwritev_part',
  'bdrv_co_pwrite_zeroes',
  'bdrv_co_copy_range_from',
  'bdrv_co_copy_range_to',
  'x_bdrv_co_pdiscard',
  'x_bdrv_co_flush',
  'x_bdrv_co_truncate',
  'x_bdrv_in_turn_read',
  'x_bdrv_in_turn_write',
  'handle_qmp_command',
  'monitor_protocol_event_emit',
  'job_state_transition',
  'job_completed',
] as const;

export type TraceEvent = (typeof EVENTS)[number] | `qmp_enter_${string}` | `qmp_exit_${string}`;

/** Names of the events of a command: "qmp_enter_blockdev_add". */
export function commandEvents(command: string): [TraceEvent, TraceEvent] {
  const name = command.replaceAll('-', '_');
  return [`qmp_enter_${name}`, `qmp_exit_${name}`];
}

/** The events that are switched on, and where their lines go. */
export interface Trace {
  readonly enabled: ReadonlySet<string>;
  write(event: TraceEvent, text: string): void;
}

/** Whether a pattern of the original's kind ("bdrv_*", any "?") fits a name. */
export function fits(pattern: string, name: string): boolean {
  const source = pattern
    .replace(/[.+^${}()|[\]\\]/g, '\\$&')
    .replaceAll('*', '.*')
    .replaceAll('?', '.');
  return new RegExp(`^${source}$`).test(name);
}
