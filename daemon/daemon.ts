/**
 * The daemon as an object: the composition root, where the floors are put together, and its end.
 */

import type { Commands } from '../schema/generated/types.ts';
import { createEngine } from '../src/aio/create-engine.ts';
import type { EngineKind } from '../src/aio/engine.ts';
import { cancelDerivations, onLongDerivation } from '../src/aio/host/long-derivation.ts';
import { asMonitor } from '../src/block/graph/debug.ts';
import { BlockLayer } from '../src/block/layer.ts';
import { limitPatience } from '../src/block/patience.ts';
import { ChardevTable } from '../src/chardev/table.ts';
import type { CommandContext } from '../src/commands/context.ts';
import { commandTable } from '../src/commands/table.ts';
import { drivers } from '../src/drivers/table.ts';
import { BlockError } from '../src/errors/error.ts';
import { ExportTable } from '../src/exports/table.ts';
import { endAllJobs } from '../src/jobs/end-all.ts';
import { JobTable } from '../src/jobs/job-common.ts';
import type { ClientLog } from '../src/nbd/server/server.ts';
import { type MonitorOptions, ObjectTree } from '../src/objects/tree.ts';
import { createDispatcher, type Dispatcher } from '../src/qmp/dispatch.ts';
import { EventHub } from '../src/qmp/events.ts';
import type { QmpSession } from '../src/qmp/session.ts';
import { definitionReader } from '../src/tools/common/image-options.ts';
import type { Applied } from './config/entries.ts';
import { createStateFile, type StateFile } from './config/state.ts';
import type { Logger } from './logger.ts';
import { attachMonitor } from './monitor.ts';
import type { PidFile } from './pid-file.ts';
import type { QmpListener } from './qmp-listener.ts';
import { type Reporter, writeAll } from './reporter.ts';
import { SessionHost } from './sessions.ts';
import type { PassedSockets } from './systemd/sockets.ts';
import type { TraceSwitch } from './trace/switch.ts';

/** A device outlives the monitor on it by so much: see attachMonitor. */
const DEVICE_MS = 100;

export interface DaemonSettings {
  readonly engine: EngineKind | 'auto';
  readonly daemonized: boolean;
  readonly logger: Logger;
  readonly reporter: Reporter;
  /** The file that keeps the running configuration (--save); null: none. */
  readonly stateFile: string | null;
  readonly passedSockets: PassedSockets;
  /** Called when the end begins. */
  readonly onEnding: () => void;
}

export class Daemon {
  readonly context: CommandContext;
  readonly host: SessionHost;
  readonly listeners: QmpListener[] = [];
  /** Sockets that the service manager has opened for this process. */
  readonly passedSockets: PassedSockets;
  pidFile: PidFile | null = null;
  /** What configurations have asked for so far. */
  readonly applied: Applied = new Map();
  /** Trace events that are on; null: no --trace. */
  trace: TraceSwitch | null = null;
  readonly #onEnding: () => void;
  readonly #state: StateFile | null;
  readonly #logger: Logger;
  readonly #events: EventHub;
  readonly #localSession: QmpSession;
  readonly #dispatcher: Dispatcher;
  /** The dispatcher with trace events; null where none are on. */
  #traced: Dispatcher | null = null;
  #ending: Promise<void> | null = null;
  #onEnded: () => void = () => undefined;

  constructor(settings: DaemonSettings) {
    const { engine: engineKind, daemonized, logger, reporter, stateFile } = settings;
    this.passedSockets = settings.passedSockets;
    this.#onEnding = settings.onEnding;
    this.#logger = logger;
    this.#events = new EventHub();
    const { engine, fallbackReason } = createEngine(engineKind);
    if (fallbackReason !== undefined) {
      logger.warn(
        { reason: fallbackReason },
        'io_uring cannot be used: I/O goes through threads, and is slower',
      );
    }
    logger.info({ engine: engine.kind }, 'I/O engine');
    const objects = new ObjectTree({
      monitor: (options, gone) => this.#openMonitor(options, gone),
      prManagerStatus: (id, connected) => this.#events.emit('PR_MANAGER_STATUS_CHANGED', { id, connected }),
    });
    const layer = new BlockLayer({
      engine,
      events: {
        emit: (name, data) => {
          this.#events.emit(name, data);
          // Jobs change the graph at their end.
          if (name === 'JOB_STATUS_CHANGE') this.#state?.changed();
        },
      },
      drivers,
      secret: (id) => objects.secret(id),
      tlsCreds: (id) => objects.tlsCreds(id, 'client'),
      checkPrManager: (id) => objects.checkPrManager(id),
      definitions: definitionReader,
      useThrottleGroup: (id) => objects.useThrottleGroup(id),
      report: (text) => reporter.message(text.trimEnd()),
      tell: (text) => this.tell(text),
    });
    const log: ClientLog = (message, details = {}, level = 'info') => logger[level](details, message);
    this.context = {
      layer,
      objects,
      chardevs: new ChardevTable(objects, {
        daemonized,
        warn: (message) => reporter.message(message),
        requestShutdown: () => void this.shutDown(),
      }),
      exports: new ExportTable(layer, objects, log, (serve) => this.host.whenServing(serve)),
      jobs: new JobTable(layer.events, (error) =>
        logger.error({ err: error }, 'a job failed in an unexpected way'),
      ),
      configFile: stateFile,
      requestShutdown: () => void this.shutDown(),
    };
    this.#state =
      stateFile === null ? null : createStateFile(stateFile, this.context, (text) => logger.error({}, text));
    const dispatcher = createDispatcher(this.context, commandTable, asMonitor);
    onLongDerivation(() => dispatcher.letOthersGo());
    const watched = this.#watched(dispatcher);
    // Asked at each command: traces are switched on after the daemon is made.
    this.host = new SessionHost(
      {
        has: (name) => watched.has(name),
        letOthersGo: () => watched.letOthersGo(),
        execute: (name, args, session) => (this.#traced ?? watched).execute(name, args, session),
      },
      this.#events,
      logger,
    );
    this.#dispatcher = watched;
    this.#localSession = this.host.createLocalSession();
  }

  /** A monitor-qmp object. With close-action=delete the object goes with its peer, and the device with it. */
  #openMonitor(options: MonitorOptions, gone: () => void): () => void {
    const { chardevs } = this.context;
    const { chardev: id, pretty = false, 'close-action': closeAction = 'none' } = options;
    const device = chardevs.find(id);
    if (device === null) throw new BlockError(`chardev "${id}" not found`);
    if (closeAction === 'none') return attachMonitor(device, this.host, pretty);
    return attachMonitor(device, this.host, pretty, () => {
      setImmediate(() => {
        gone();
        // When the monitor has left it.
        setTimeout(
          () => chardevs.find(id) === device && !device.inUse && chardevs.remove(id),
          DEVICE_MS,
        ).unref();
      });
    });
  }

  /** Writes to standard output, unless that is a monitor's or a character device's. */
  tell(text: string): void {
    const isTaken = this.context.chardevs.usesStdio || this.listeners.some(({ url }) => url === 'stdio');
    if (!isTaken) writeAll(1, text);
  }

  /** Puts the trace events in place that the command line has switched on. */
  async beginTrace(): Promise<void> {
    const { trace } = this;
    if (trace === null || trace.enabled.size === 0) return;
    const { traceEvents, traceGraph, traceRequests, tracedDispatcher } = await import('./trace/attach.ts');
    traceRequests(trace);
    traceGraph(trace, this.context.layer);
    traceEvents(trace, this.#events);
    this.#traced = tracedDispatcher(trace, this.#dispatcher);
  }

  /** Notes an error in the log that is nobody's fault but ours. */
  reportBug(what: string, error: unknown): void {
    this.#logger.error({ err: error }, `${what} failed in an unexpected way`);
  }

  /** Runs a QMP command on behalf of the command line. */
  async run<K extends keyof Commands>(name: K, args: Commands[K]['args']): Promise<Commands[K]['ret']> {
    return await asMonitor(() => commandTable[name](this.context, args, this.#localSession));
  }

  /** The dispatcher, and the state file learns of commands that may have changed something. */
  #watched(dispatcher: Dispatcher): Dispatcher {
    const state = this.#state;
    if (state === null) return dispatcher;
    return {
      has: (name) => dispatcher.has(name),
      letOthersGo: () => dispatcher.letOthersGo(),
      execute: (name, args, session) => {
        if (name.startsWith('query-') || name === 'qmp_capabilities')
          return dispatcher.execute(name, args, session);
        if (name === 'quit') {
          return this.#finishState().then(() => dispatcher.execute(name, args, session));
        }
        const result = dispatcher.execute(name, args, session);
        // Whoever has the answer finds the change after a crash, too.
        return Promise.resolve(result).then((value) => state.keep().then(() => value));
      },
    };
  }

  async #finishState(): Promise<void> {
    try {
      await this.#state?.finish();
    } catch (error) {
      this.#logger.error({ err: error }, 'the running configuration could not be saved');
    }
  }

  /** Everything has been made that was asked for: from now on changes are kept. */
  keepState(): void {
    this.#state?.changed();
  }

  /** Whether the end has begun. */
  get ending(): boolean {
    return this.#ending !== null;
  }

  /** `action` is called when everything has been ended. */
  onEnded(action: () => void): void {
    this.#onEnded = action;
  }

  /** Ends everything in order: exports, jobs, nodes, monitors, files. Resolves when the process may exit. */
  shutDown(): Promise<void> {
    if (this.#ending === null) this.#onEnding();
    this.#ending ??= asMonitor(() => this.#end());
    return this.#ending;
  }

  async #end(): Promise<void> {
    const { exports, jobs, layer, chardevs } = this.context;
    await this.#finishState();
    const attempt = async (what: string, action: () => unknown): Promise<void> => {
      try {
        await action();
      } catch (error) {
        this.#logger.error({ err: error }, `${what} failed`);
      }
    };
    // A server that does not answer must not keep the daemon from ending.
    const endPatience = limitPatience(layer);
    cancelDerivations();
    layer.giveUp();
    await attempt('closing the exports', () => exports.closeAll());
    await attempt('ending the jobs', () => endAllJobs(jobs));
    await attempt('closing the nodes', () => layer.closeAll());
    endPatience();
    await attempt('sending the last events', () => this.#events.flush());
    for (const listener of this.listeners) await attempt('closing a listener', () => listener.close());
    await attempt('closing the character devices', () => chardevs.closeAll());
    await attempt('removing the pid file', () => this.pidFile?.remove());
    await attempt('closing the engine', () => layer.engine.close());
    this.#onEnded();
  }
}
