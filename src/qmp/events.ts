/**
 * Events: from the block layer and others to every session that has negotiated.
 *
 * Some events can come by the thousand. Those are limited to one a second for each source: the first goes out at
 * once, of the others in that second the last one goes out at its end.
 */

import type { Events } from '../../schema/generated/types.ts';
import { printJson, printJsonPretty } from './json-print.ts';
import type { QmpSession } from './session.ts';

interface RateLimit<K extends keyof Events> {
  readonly periodMs: number;
  /** Events with different keys do not displace one another; null: this one is not limited. */
  readonly key: (data: Events[K]) => string | null;
}

/** QMP reference: BLOCK_IO_ERROR is rate-limited except when the action is stop, the events of quorum always. */
const RATE_LIMITS: { readonly [K in keyof Events]?: RateLimit<K> } = {
  BLOCK_IO_ERROR: {
    periodMs: 1000,
    key: (data) => (data.action === 'stop' ? null : data['qom-path']),
  },
  QUORUM_FAILURE: { periodMs: 1000, key: () => '' },
  QUORUM_REPORT_BAD: { periodMs: 1000, key: (data) => data['node-name'] },
};

interface Held {
  readonly timer: NodeJS.Timeout;
  /** The last event of this period; null: none since the first. */
  pending: object | null;
}

export class EventHub {
  readonly #sessions = new Set<QmpSession>();
  readonly #held = new Map<string, Held>();

  /** Adds a session. Returns the function that removes it. */
  subscribe(session: QmpSession): () => void {
    this.#sessions.add(session);
    return () => {
      this.#sessions.delete(session);
    };
  }

  /** Sends an event to all sessions, now or when its rate limit allows. */
  emit<K extends keyof Events>(name: K, data: Events[K]): void {
    const message = { timestamp: timestamp(), event: name, data };
    const limit = RATE_LIMITS[name] as RateLimit<K> | undefined;
    const key = limit?.key(data) ?? null;
    if (limit === undefined || key === null) this.#broadcast(message);
    else this.#hold(`${name} ${key}`, limit.periodMs, message);
  }

  /** Sends what is held back; for the end of the daemon. */
  flush(): void {
    for (const { timer, pending } of this.#held.values()) {
      clearTimeout(timer);
      if (pending !== null) this.#broadcast(pending);
    }
    this.#held.clear();
  }

  #hold(key: string, periodMs: number, message: object): void {
    const held = this.#held.get(key);
    if (held !== undefined) {
      held.pending = message;
      return;
    }
    this.#broadcast(message);
    const timer = setTimeout(() => {
      const last = this.#held.get(key)?.pending ?? null;
      this.#held.delete(key);
      if (last !== null) this.#hold(key, periodMs, last);
    }, periodMs);
    timer.unref();
    this.#held.set(key, { timer, pending: null });
  }

  #broadcast(message: object): void {
    let plain: string | undefined;
    let pretty: string | undefined;
    for (const session of this.#sessions) {
      if (!session.negotiated) continue;
      if (session.pretty) {
        pretty ??= `${printJsonPretty(message)}\r\n`;
        session.deliverEvent(pretty);
      } else {
        plain ??= `${printJson(message)}\r\n`;
        session.deliverEvent(plain);
      }
    }
  }
}

function timestamp(): { seconds: number; microseconds: number } {
  const milliseconds = performance.timeOrigin + performance.now();
  const seconds = Math.floor(milliseconds / 1000);
  return { seconds, microseconds: Math.floor((milliseconds - seconds * 1000) * 1000) };
}
