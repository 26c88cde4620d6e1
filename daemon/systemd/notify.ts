/**
 * What the service manager is told (sd_notify): ready, stopping, alive. Nothing where no manager asks to be told.
 *
 * Source of the facts: sd_notify(3), sd_watchdog_enabled(3).
 */

import { sendDatagram } from '../../src/aio/host/datagram.ts';

/** Tells the manager; nothing is told where there is none. */
export interface Notifier {
  /** Everything that was asked for is there. */
  ready(): void;
  /** The configuration is being read again; `ready` follows. */
  reloading(): void;
  /** The end has begun. */
  stopping(): void;
}

const US_PER_MS = 1000;
/** Longer than any timer of node; a watchdog that waits as long is none. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** How often to say that the process is alive, in milliseconds: twice as often as is asked for; null: nobody asks. */
export function watchdogMs(env: NodeJS.ProcessEnv, pid: number): number | null {
  const { WATCHDOG_USEC: usec = '', WATCHDOG_PID: owner } = env;
  if (!/^[1-9]\d{0,18}$/.test(usec) || (owner !== undefined && owner !== String(pid))) return null;
  return Math.min(Math.max(1, Math.floor(Number(usec) / US_PER_MS / 2)), MAX_TIMER_MS);
}

/** A notifier for the manager that `env` names. Takes its variables out of `env`: they are not for children. */
export function createNotifier(env: NodeJS.ProcessEnv, pid: number): Notifier {
  const name = env.NOTIFY_SOCKET ?? '';
  const aliveMs = watchdogMs(env, pid);
  for (const key of ['NOTIFY_SOCKET', 'WATCHDOG_USEC', 'WATCHDOG_PID']) delete env[key];
  if (!/^[@/]/.test(name)) {
    const nothing = (): void => undefined;
    return { ready: nothing, reloading: nothing, stopping: nothing };
  }
  // A manager that cannot be reached is no reason to fail: the disks are served all the same.
  const tell = (...lines: string[]): void => void sendDatagram(name, lines.join('\n'));
  let saysAlive = false;
  return {
    ready() {
      tell('READY=1', 'STATUS=Serving', `MAINPID=${pid}`);
      // A daemon whose event loop stands still says nothing, and is restarted.
      if (aliveMs !== null && !saysAlive) setInterval(() => tell('WATCHDOG=1'), aliveMs).unref();
      saysAlive = true;
    },
    reloading() {
      // systemd 253 wants to know when, by CLOCK_MONOTONIC.
      tell(
        'RELOADING=1',
        'STATUS=Reading the configuration again',
        `MONOTONIC_USEC=${process.hrtime.bigint() / 1000n}`,
      );
    },
    stopping() {
      tell('STOPPING=1', 'STATUS=Closing exports, jobs and nodes');
    },
  };
}
