/**
 * The program: reads the command line, starts the daemon, executes the options, and ends it when told to.
 *
 * Exit status: 0 after a request to end (signal or `quit`) and after help; 1 when startup failed.
 */

import { closeSync } from 'node:fs';
import path from 'node:path';
import { exitProcess } from '../src/aio/host/exit.ts';
import { restoreWords } from '../src/aio/host/names.ts';
import { BlockError } from '../src/errors/error.ts';
import { EarlyExit, executeOptions, reloadConfiguration } from './command-line.ts';
import { Daemon } from './daemon.ts';
import { usage, versionText } from './help.ts';
import { createLogger, isLogLevel, LOG_LEVELS, type Logger, type LogLevel, openLogFile } from './logger.ts';
import { type CommandLineItem, type OptionName, parseCommandLine, UsageError } from './options.ts';
import { createReporter, type Reporter, writeAll } from './reporter.ts';
import { createNotifier, type Notifier } from './systemd/notify.ts';
import { takePassedSockets } from './systemd/sockets.ts';

/** Time for what has been written to sockets to be sent before the process ends all the same. */
const LINGER_MS = 500;

/** The value of the last use of an option; null when it is not given. */
function lastValue(items: readonly CommandLineItem[], name: OptionName): string | null {
  const item = items.findLast((candidate) => candidate.kind === 'option' && candidate.name === name);
  return item?.kind === 'option' ? item.value : null;
}

function parseEngine(text: string): 'auto' | 'io_uring' | 'threads' {
  if (text === 'auto' || text === 'io_uring' || text === 'threads') return text;
  throw new BlockError(`Invalid engine '${text}', expected: auto, io_uring or threads`);
}

function parseLogLevel(text: string): LogLevel {
  if (isLogLevel(text)) return text;
  throw new BlockError(`Invalid log level '${text}', expected: ${LOG_LEVELS.join(', ')}`);
}

/** Ends the process when everything that is still to be sent has gone, or soon. */
function exitSoon(status: number): void {
  process.exitCode = status;
  process.stdin.unref?.();
  setTimeout(() => exitProcess(status), LINGER_MS).unref();
}

interface Reloading {
  readonly configs: readonly string[];
  /** The log file by name; null: standard error. */
  readonly logFile: string | null;
  readonly logFd: number;
  /** What standard error is, where that is the log too. */
  readonly daemonized: boolean;
}

function watchSignals(daemon: Daemon): void {
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => void daemon.shutDown());
  }
}

/**
 * SIGHUP: where there is a configuration or a log file, both are read and opened anew; else it ends the daemon, as with
 * the original. Not before everything has started.
 */
function watchHangUp(
  daemon: Daemon,
  reporter: Reporter,
  logger: Logger,
  notifier: Notifier,
  what: Reloading,
): void {
  const { configs, logFile, logFd, daemonized } = what;
  let reloading = Promise.resolve();
  const reload = async (): Promise<void> => {
    notifier.reloading();
    if (logFile !== null) {
      const { dupOnto } = await import('../src/aio/ffi.ts');
      const fd = openLogFile(logFile);
      for (const old of daemonized ? [logFd, 2] : [logFd]) dupOnto(fd, old);
      closeSync(fd);
    }
    for (const config of configs) {
      const added = await reloadConfiguration(config, { daemon, reporter });
      logger.info({ config, added }, 'configuration read again');
    }
    daemon.keepState();
    notifier.ready();
  };
  process.on('SIGHUP', () => {
    if (configs.length === 0 && logFile === null) {
      void daemon.shutDown();
      return;
    }
    reloading = reloading.then(reload).catch((error: unknown) => {
      reporter.error(error);
      notifier.ready();
    });
  });
}

/** Executes everything the command line asks for. */
async function startUp(items: readonly CommandLineItem[], daemon: Daemon, reporter: Reporter): Promise<void> {
  const pidFileName = lastValue(items, 'pidfile');
  const embeddedDir = lastValue(items, 'embedded');
  await executeOptions(items, { daemon, reporter });
  if (embeddedDir !== null) {
    const { startEmbedded } = await import('./embedded.ts');
    await startEmbedded(embeddedDir, daemon);
  }
  if (pidFileName !== null && !daemon.ending) {
    const { createPidFile } = await import('./pid-file.ts');
    daemon.pidFile = createPidFile(pidFileName);
  }
}

async function runDaemon(items: readonly CommandLineItem[], reporter: Reporter): Promise<void> {
  const daemonized = lastValue(items, 'daemonize') !== null;
  const embedded = lastValue(items, 'embedded') !== null;
  const state = lastValue(items, 'save') ?? lastValue(items, 'restore');
  if (state !== null) (await import('./config/state.ts')).lockState(state);
  const level = lastValue(items, 'log-level') ?? (process.env.QBLOCKD_LOG || (embedded ? 'info' : 'warn'));
  const logFile = lastValue(items, 'log-file');
  const logFd = logFile === null ? 2 : openLogFile(logFile);
  const logger = createLogger(parseLogLevel(level), logFd);
  const passedSockets = takePassedSockets(process.env, process.pid);
  const notifier = createNotifier(process.env, process.pid);
  const daemon = new Daemon({
    engine: parseEngine(lastValue(items, 'engine') ?? process.env.QBLOCKD_ENGINE ?? 'auto'),
    daemonized,
    logger,
    reporter,
    stateFile: lastValue(items, 'save'),
    passedSockets,
    onEnding: notifier.stopping,
  });
  const slow = lastValue(items, 'slow-requests');
  if (slow !== null) {
    const { logSlowRequests, parseThreshold } = await import('./trace/slow-requests.ts');
    logSlowRequests(parseThreshold(slow), logger);
  }
  let status = 0;
  watchSignals(daemon);
  const configs = items.flatMap((item) =>
    item.kind === 'option' && item.name === 'config' ? [item.value] : [],
  );
  watchHangUp(daemon, reporter, logger, notifier, { configs, logFile, logFd, daemonized });
  process.on('SIGUSR2', () => {
    void import('./debug-dump.ts').then(({ writeDump }) =>
      writeDump(daemon, lastValue(items, 'dump-file'), logger),
    );
  });
  daemon.onEnded(() => exitSoon(status));
  try {
    await startUp(items, daemon, reporter);
  } catch (error) {
    if (daemon.ending) return; // ended while it started: what was interrupted is no failure
    status = error instanceof EarlyExit ? error.status : 1;
    if (!(error instanceof EarlyExit)) reporter.error(error);
    await daemon.shutDown();
    exitProcess(status);
  }
  if (daemon.ending) return;
  if (daemonized) (await import('./daemonize.ts')).becomeDaemon(logFd);
  daemon.keepState();
  daemon.host.startServing();
  notifier.ready();
  logger.info({}, 'ready');
}

/** Runs the program with the arguments of the process. */
async function main(): Promise<void> {
  if (process.env.QBLOCKD_TURN_PROBE !== undefined)
    (await import('./turn-probe.ts')).startTurnProbe(process.env.QBLOCKD_TURN_PROBE);
  const program = path.basename(process.argv[1] ?? 'qblockd');
  const reporter = createReporter(program);
  try {
    const items = parseCommandLine(restoreWords(process.argv.slice(2)));
    const first = items.find(
      (item) => item.kind === 'option' && (item.name === 'help' || item.name === 'version'),
    );
    if (first?.kind === 'option') {
      writeAll(1, first.name === 'help' ? usage(program) : versionText(program));
      return;
    }
    if (lastValue(items, 'daemonize') !== null) {
      const { isDaemonChild, runInBackground } = await import('./daemonize.ts');
      if (!isDaemonChild()) process.exit(await runInBackground());
    }
    await runDaemon(items, reporter);
  } catch (error) {
    reporter.error(error instanceof UsageError ? new BlockError(error.message) : error);
    process.exit(1);
  }
}

void main();
