/**
 * Puts the trace events that are on in place: around the block layer's calls, commands, events of QMP.
 *
 * What is off is not looked at: without `--trace` none of this is loaded, and no code on the way of a request knows of it.
 */

import type { Events } from '../../schema/generated/types.ts';
import { observeBackends } from '../../src/block/backend.ts';
import { observeForms, observeInTurn } from '../../src/block/io/callbacks.ts';
import type { BlockLayer } from '../../src/block/layer.ts';
import { nodeFilename } from '../../src/block/open/filename.ts';
import type { Dispatcher } from '../../src/qmp/dispatch.ts';
import type { EventHub } from '../../src/qmp/events.ts';
import { commandEvents, type Trace, type TraceEvent } from './events.ts';
import { shownArguments } from './switch.ts';

/** Events of the forms of the block layer that have a range: NAME(offset, bytes, ...). */
const FORM_EVENTS: Readonly<Record<string, TraceEvent>> = {
  preadv: 'bdrv_co_preadv_part',
  pwritev: 'bdrv_co_pwritev_part',
  pwriteZeroes: 'bdrv_co_pwrite_zeroes',
  pdiscard: 'x_bdrv_co_pdiscard',
  copyRangeFrom: 'bdrv_co_copy_range_from',
  copyRangeTo: 'bdrv_co_copy_range_to',
  flush: 'x_bdrv_co_flush',
  truncate: 'x_bdrv_co_truncate',
};

const BACKEND_EVENTS: Readonly<Record<string, TraceEvent>> = {
  preadv: 'blk_co_preadv',
  pwritev: 'blk_co_pwritev',
  pwriteZeroes: 'x_blk_co_pwrite_zeroes',
  pdiscard: 'x_blk_co_pdiscard',
  flush: 'x_blk_co_flush',
};

/** "offset 0x0 bytes 0x200", as far as the call has them. */
function range(args: readonly unknown[]): string {
  const [offset, bytes] = args;
  const hex = (value: unknown): string => `0x${Number(value).toString(16)}`;
  const parts = [
    ...(typeof offset === 'number' ? [` offset ${hex(offset)}`] : []),
    ...(typeof bytes === 'number' ? [` bytes ${hex(bytes)}`] : []),
  ];
  return parts.join('');
}

/** Traces the requests of all nodes. */
export function traceRequests(trace: Trace): void {
  const isOn = (names: Readonly<Record<string, TraceEvent>>): boolean =>
    Object.values(names).some((name) => trace.enabled.has(name));
  if (isOn(FORM_EVENTS)) {
    observeForms((name, node, args, run) => {
      const event = FORM_EVENTS[name];
      if (event !== undefined && trace.enabled.has(event))
        trace.write(event, `bs ${node.name}${range(args)}`);
      return run();
    });
  }
  if (isOn(BACKEND_EVENTS)) {
    observeBackends((name, backend, args, run) => {
      const event = BACKEND_EVENTS[name];
      if (event !== undefined && trace.enabled.has(event))
        trace.write(event, `blk - bs ${backend.nodeName}${range(args)}`);
      return run();
    });
  }
  if (trace.enabled.has('x_bdrv_in_turn_read') || trace.enabled.has('x_bdrv_in_turn_write')) {
    observeInTurn((name, node, offset, bytes) => {
      const event = name === 'tryPwritev' ? 'x_bdrv_in_turn_write' : 'x_bdrv_in_turn_read';
      if (trace.enabled.has(event)) trace.write(event, `bs ${node.name}${range([offset, bytes])}`);
    });
  }
}

/** Traces nodes that come and go, and their users. */
export function traceGraph(trace: Trace, layer: BlockLayer): void {
  const { register, unregister, createBackend } = layer;
  layer.register = (node) => {
    register.call(layer, node);
    if (!trace.enabled.has('bdrv_open_common')) return;
    // Filters that jobs put in get what they filter only afterwards.
    const isComplete = node.driver.kind === 'protocol' || node.children.length > 0;
    const name = isComplete ? nodeFilename(node) : '';
    trace.write('bdrv_open_common', `bs ${node.name} filename "${name}" format_name "${node.driver.name}"`);
  };
  layer.unregister = (node) => {
    unregister.call(layer, node);
    if (trace.enabled.has('x_bdrv_close')) trace.write('x_bdrv_close', `bs ${node.name}`);
  };
  layer.createBackend = async (node, ...rest) => {
    const backend = await createBackend.call(layer, node, ...rest);
    if (trace.enabled.has('blk_root_attach')) trace.write('blk_root_attach', `blk - bs ${node.name}`);
    const { close } = backend;
    backend.close = async () => {
      await close.call(backend);
      if (trace.enabled.has('blk_root_detach')) trace.write('blk_root_detach', `blk - bs ${node.name}`);
    };
    return backend;
  };
}

/** Traces events of QMP, and what they tell of jobs. */
export function traceEvents(trace: Trace, hub: EventHub): void {
  const { emit } = hub;
  const states = new Map<string, string>();
  hub.emit = (name, data) => {
    if (trace.enabled.has('monitor_protocol_event_emit'))
      trace.write('monitor_protocol_event_emit', `event=${name} data=${JSON.stringify(data)}`);
    if (name === 'JOB_STATUS_CHANGE') {
      const { id, status } = data as Events['JOB_STATUS_CHANGE'];
      const before = states.get(id) ?? 'undefined';
      if (status === 'null') states.delete(id);
      else states.set(id, status);
      if (trace.enabled.has('job_state_transition'))
        trace.write(
          'job_state_transition',
          `job ${id} attempting allowed transition (${before}-->${status})`,
        );
      if (status === 'concluded' && trace.enabled.has('job_completed'))
        trace.write('job_completed', `job ${id}`);
    }
    emit.call(hub, name, data);
  };
}

/** The dispatcher with the events of commands. */
export function tracedDispatcher(trace: Trace, dispatcher: Dispatcher): Dispatcher {
  return {
    has: (name) => dispatcher.has(name),
    letOthersGo: () => dispatcher.letOthersGo(),
    execute(name, args, session) {
      const [enter, exit] = commandEvents(name);
      if (trace.enabled.has('handle_qmp_command'))
        trace.write('handle_qmp_command', `mon - req: {"execute": "${name}"}`);
      if (trace.enabled.has(enter)) trace.write(enter, shownArguments(name, args));
      const ended = (text: string, isSuccess: boolean): void => {
        if (trace.enabled.has(exit)) trace.write(exit, `${text} ${isSuccess ? 1 : 0}`);
      };
      const failed = (error: unknown): never => {
        ended(error instanceof Error ? error.message : String(error), false);
        throw error;
      };
      try {
        const result = dispatcher.execute(name, args, session);
        if (result instanceof Promise)
          return result.then((value: unknown) => {
            ended(shownArguments(name, value), true);
            return value;
          }, failed);
        ended(shownArguments(name, result), true);
        return result;
      } catch (error) {
        return failed(error);
      }
    },
  };
}
