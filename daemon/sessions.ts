/**
 * QMP sessions over the transports of the daemon: what listeners and monitors share.
 *
 * Connections may come while the command line is still being executed. As in the original they are not served before
 * that is done: whoever is greeted finds everything that was asked for.
 */

import type { Dispatcher } from '../src/qmp/dispatch.ts';
import type { EventHub } from '../src/qmp/events.ts';
import { QmpSession, type SessionOptions } from '../src/qmp/session.ts';

/** A connection, as the session sees it. */
export type Transport = Pick<SessionOptions, 'send' | 'close' | 'pause' | 'resume'>;

/** A session that has been opened; the transport tells it what happens. */
export interface OpenSession {
  receive(bytes: Uint8Array): void;
  drained(): void;
  /** The client sends no more; `whenAnswered` is called once what it has sent is answered. */
  endOfInput(whenAnswered: () => void): void;
  /** The connection has gone. */
  disconnected(): void;
}

export class SessionHost {
  readonly #dispatcher: Dispatcher;
  readonly #events: EventHub;
  readonly #reportBug: (error: unknown) => void;
  readonly #open = new Set<QmpSession>();
  #serving = false;
  #waiting: (() => void)[] = [];

  constructor(dispatcher: Dispatcher, events: EventHub, reportBug: (error: unknown) => void) {
    this.#dispatcher = dispatcher;
    this.#events = events;
    this.#reportBug = reportBug;
  }

  /** Runs `serve` when the command line has been executed: at once if that is so. */
  whenServing(serve: () => void): void {
    if (this.#serving) serve();
    else this.#waiting.push(serve);
  }

  /** From now on connections are served. */
  startServing(): void {
    this.#serving = true;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const serve of waiting) serve();
  }

  /** Opens a session and greets the client. */
  open(transport: Transport, pretty: boolean): OpenSession {
    const session = new QmpSession({
      ...transport,
      dispatcher: this.#dispatcher,
      pretty,
      reportBug: this.#reportBug,
    });
    const unsubscribe = this.#events.subscribe(session);
    this.#open.add(session);
    session.start();
    return {
      receive: (bytes) => session.receive(bytes),
      drained: () => session.drained(),
      endOfInput: (whenAnswered) => session.endOfInput(whenAnswered),
      disconnected: () => {
        this.#open.delete(session);
        unsubscribe();
        session.disconnected();
      },
    };
  }

  /** A session without a client, on whose behalf the command line runs commands. */
  createLocalSession(): QmpSession {
    const nothing = (): void => undefined;
    return new QmpSession({
      dispatcher: this.#dispatcher,
      send: () => true,
      close: nothing,
      pause: nothing,
      resume: nothing,
    });
  }
}
