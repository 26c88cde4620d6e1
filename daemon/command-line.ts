/**
 * Executes the options of the command line, in the order in which they are given, by the same handlers that QMP
 * commands have.
 */

import { existsSync } from 'node:fs';
import type { ChardevBackend } from '../schema/generated/types.ts';
import { VISITOR_TYPES } from '../schema/generated/visitor-tables.ts';
import { BlockError } from '../src/errors/error.ts';
import { parseKeyval } from '../src/qmp/keyval.ts';
import { type CommandLineTypes, HELP_REQUESTED, parseOption } from '../src/qmp/validate.ts';
import { CHARDEV_OPTIONS, chardevBackend } from './arguments/chardev-option.ts';
import { describeOptions, parseOptions } from './arguments/qemu-opts.ts';
import { parseQmpOption } from './arguments/qmp-address.ts';
import { keyOf } from './config/entries.ts';
import type { Section } from './config/read.ts';
import type { Daemon } from './daemon.ts';
import { chardevKinds, objectHelp } from './help.ts';
import { attachMonitor } from './monitor.ts';
import { optionHelp } from './option-help.ts';
import type { CommandLineItem, OptionName } from './options.ts';
import { startQmpListener } from './qmp-listener.ts';
import { type Reporter, writeAll } from './reporter.ts';
import { passedSocket } from './systemd/sockets.ts';
import type { AccessOptions } from './web/access.ts';

/** An option whose work is to print something: the process ends with this status. */
export class EarlyExit {
  readonly status: number;

  constructor(status: number) {
    this.status = status;
  }
}

interface Execution {
  readonly daemon: Daemon;
  readonly reporter: Reporter;
  /** The saved configuration that is carried out, too (--restore); null: there is none. */
  readonly saved: string | null;
}

/** Reads an option's argument, or prints help and ends where that asks for it. */
function parse<T extends keyof CommandLineTypes>(
  type: T,
  value: string,
  impliedKey: string | null,
): CommandLineTypes[T] {
  const options = parseOption(type, value, impliedKey);
  if (options !== HELP_REQUESTED) return options;
  writeAll(1, optionHelp(type, parseKeyval(value, impliedKey).options));
  throw new EarlyExit(0);
}

async function addObject(value: string, { daemon }: Execution): Promise<void> {
  if (!value.startsWith('{')) {
    const { options, help } = parseKeyval(value, 'qom-type');
    if (help) {
      const typeName = options['qom-type'];
      writeAll(1, objectHelp(typeof typeName === 'string' ? typeName : undefined));
      throw new EarlyExit(0);
    }
  }
  await daemon.run('object-add', parse('ObjectOptions', value, 'qom-type'));
}

async function addChardev(value: string, { daemon, reporter }: Execution): Promise<void> {
  const { id, values, help } = parseOptions(value, CHARDEV_OPTIONS, 'backend', (text) =>
    reporter.message(text),
  );
  const kind = values.get('backend');
  if (value.split(',').some((part, index) => index === 0 && (part === 'help' || part === '?'))) {
    writeAll(1, chardevKinds());
    throw new EarlyExit(0);
  }
  if (help) {
    writeAll(1, describeOptions('chardev', CHARDEV_OPTIONS));
    throw new EarlyExit(1);
  }
  if (id === null) throw new BlockError('chardev: no id specified');
  if (typeof kind !== 'string') throw new BlockError(`chardev: "${id}" missing backend`);
  const backend = chardevBackend(kind, values);
  if (values.get('mux') !== true) {
    await createChardev(id, backend, daemon);
    return;
  }
  const base = `${id}-base`;
  await createChardev(base, backend, daemon);
  await createChardev(id, { type: 'mux', data: { chardev: base } }, daemon);
}

async function createChardev(
  id: string,
  backend: ChardevBackend,
  { context: { chardevs } }: Daemon,
): Promise<void> {
  if (chardevs.has(id)) {
    throw new BlockError(`attempt to add duplicate property '${id}' to object (type 'container')`);
  }
  const { pty } = await chardevs.add(id, backend, { allowInheritedFd: true });
  if (pty !== undefined) writeAll(1, `char device redirected to ${pty} (label ${id})\n`);
}

function addMonitor(value: string, { daemon }: Execution): void {
  const { chardev: id, mode = 'control', pretty = false } = parse('MonitorOptions', value, 'chardev');
  const device = daemon.context.chardevs.find(id);
  if (device === null) throw new BlockError(`chardev "${id}" not found`);
  if (mode !== 'control') throw new BlockError('Only QMP is supported');
  attachMonitor(device, daemon.host, pretty);
}

async function startNbdServer(value: string, { daemon }: Execution): Promise<void> {
  const options = parse('NbdServerOptions', value, null);
  const { addr } = options;
  // A name is that of a socket which the service manager has passed.
  const isName = addr.type === 'fd' && daemon.passedSockets.has(addr.str);
  const named = isName ? { ...addr, str: passedSocket(daemon.passedSockets, addr.str) } : addr;
  await daemon.context.exports.startNbdServer({ ...options, addr: named }, 'command-line');
}

async function addExport(value: string, { daemon }: Execution): Promise<void> {
  const options = parseExport(value);
  const { layer } = daemon.context;
  layer.allowInheritedFd = true;
  try {
    await daemon.run('block-export-add', options);
  } finally {
    layer.allowInheritedFd = false;
  }
}

/** The original has types of exports that are not here: who asks for one is told which are. */
function parseExport(value: string): CommandLineTypes['BlockExportOptions'] {
  try {
    return parse('BlockExportOptions', value, 'type');
  } catch (error) {
    const types = VISITOR_TYPES.BlockExportType;
    if (!(error instanceof BlockError) || types?.kind !== 'enum') throw error;
    if (!/^Parameter 'type' does not accept value '(fuse|vduse-blk|vhost-user-blk)'$/.test(error.message))
      throw error;
    throw new BlockError(error.message, { hint: `Types of exports: ${types.values.join(', ')}` });
  }
}

async function addQmpListener(value: string, { daemon }: Execution): Promise<void> {
  const options = parseQmpOption(value);
  const listener = await startQmpListener(options, daemon.host, daemon.passedSockets);
  daemon.listeners.push(listener);
  if (!listener.url.startsWith('ws:')) return;
  const port = options.address.kind === 'ws' ? options.address.port : '';
  if (isUnknown(options, port)) daemon.tell(`Console: ${listener.url.replace(/^ws:/, 'http:')}\n`);
}

/** Addresses are told where no client could know the token or the port otherwise. */
function isUnknown({ token, tokenFile }: AccessOptions, port: string): boolean {
  return (token === null && tokenFile === null) || port === '0';
}

async function addMetrics(value: string, { daemon }: Execution): Promise<void> {
  const { parseMetricsOption, startMetrics } = await import('./metrics/server.ts');
  const options = parseMetricsOption(value);
  const watched = { context: daemon.context, monitorClients: () => daemon.host.clientCount };
  const listener = await startMetrics(options, watched, (error) => daemon.reportBug('a scrape', error));
  daemon.listeners.push(listener);
  if (isUnknown(options, options.port)) daemon.tell(`Metrics: ${listener.url}\n`);
}

/** Switches trace events on. All options of the kind come before the others are executed: see executeOptions. */
async function trace(value: string, { daemon, reporter }: Execution): Promise<void> {
  const { allEvents, applyTraceOption, createTrace } = await import('./trace/switch.ts');
  daemon.trace ??= createTrace();
  const tell = (text: string): void => reporter.message(text);
  if (applyTraceOption(value, daemon.trace, tell) !== 'help') return;
  writeAll(1, `${allEvents().join('\n')}\n`);
  throw new EarlyExit(0);
}

async function addBlockNode(value: string, { daemon }: Execution): Promise<void> {
  const options = parse('BlockdevOptions', value, 'driver');
  const { layer } = daemon.context;
  layer.allowInheritedFd = true;
  layer.mayWaitInCalls = true;
  try {
    await daemon.run('blockdev-add', options);
  } finally {
    layer.allowInheritedFd = false;
    layer.mayWaitInCalls = false;
  }
}

/** A configuration file or folder: its entries are executed like options. */
async function addConfig(value: string, execution: Execution): Promise<void> {
  const { applyConfig } = await import('./config/apply.ts');
  const { reporter, saved } = execution;
  const execute = (section: Section, text: string) => {
    execution.daemon.applied.set(keyOf(section, text), text);
    return EXECUTORS[section]?.(text, execution);
  };
  await applyConfig(value, reporter, execute, saved === value ? null : saved);
}

/** SIGHUP: adds what is new in a configuration. Returns how many entries. */
export async function reloadConfiguration(
  name: string,
  { daemon, reporter }: Omit<Execution, 'saved'>,
): Promise<number> {
  const { reloadConfig } = await import('./config/reload.ts');
  const execution: Execution = { daemon, reporter, saved: null };
  const execute = async (section: Section, text: string): Promise<void> => {
    await EXECUTORS[section]?.(text, execution);
    daemon.applied.set(keyOf(section, text), text);
  };
  const warn = (text: string): void => reporter.message(`warning: ${text}`);
  return await reloadConfig(name, daemon.context, daemon.applied, execute, warn);
}

/** A saved configuration; there is none before the first save. */
async function restore(value: string, execution: Execution): Promise<void> {
  if (existsSync(value)) await addConfig(value, execution);
}

type Executor = (value: string, execution: Execution) => void | Promise<void>;

/** The options that are executed in order; the others concern the process as a whole (main.ts). */
const EXECUTORS: { readonly [K in OptionName]?: Executor } = {
  blockdev: addBlockNode,
  chardev: addChardev,
  config: addConfig,
  export: addExport,
  metrics: addMetrics,
  monitor: addMonitor,
  'nbd-server': startNbdServer,
  object: addObject,
  qmp: addQmpListener,
  restore,
  trace,
};

/** Executes all options. Throws the error of the first that fails; `reporter.location` then names it. */
export async function executeOptions(
  items: readonly CommandLineItem[],
  { daemon, reporter }: Omit<Execution, 'saved'>,
): Promise<void> {
  const restored = items.find((item) => item.kind === 'option' && item.name === 'restore');
  const saved = restored?.kind === 'option' && existsSync(restored.value) ? restored.value : null;
  const execution: Execution = { daemon, reporter, saved };
  const isTrace = (item: CommandLineItem): boolean => item.kind === 'option' && item.name === 'trace';
  const traces = items.filter(isTrace);
  for (const item of [...traces, ...items.filter((each) => !isTrace(each))]) {
    execution.reporter.location = item.text;
    if (item === items.find((each) => !isTrace(each))) await daemon.beginTrace();
    if (item.kind === 'operand') throw new BlockError('Unexpected argument');
    await EXECUTORS[item.name]?.(item.value, execution);
    if (execution.daemon.ending) break;
  }
  execution.reporter.location = null;
}
