/**
 * QMP sessions over the transports of the daemon: what listeners and monitors share.
 *
 * Connections may come while the command line is still being executed. As in the original they are not served before
 * that is done: whoever is greeted finds everything that was asked for.
 */

import type { Socket } from 'node:net';
import { clientMemory } from '../src/aio/host/client-memory.ts';
import type { Dispatcher } from '../src/qmp/dispatch.ts';
import type { EventHub } from '../src/qmp/events.ts';
import { QmpSession, type SessionOptions } from '../src/qmp/session.ts';
import type { Logger } from './logger.ts';

/** Who is at the other end, for the log. */
export function peerName({ remoteAddress, remotePort }: Socket): string {
  return remoteAddress === undefined ? 'unix' : `${remoteAddress}:${remotePort}`;
}

/** A connection, as the session sees it. */
export type Transport = Pick<SessionOptions, 'send' | 'wholeMessages' | 'close' | 'pause' | 'resume'> & {
  /** Bytes of messages that have not arrived whole. */
  readonly heldBytes?: () => number;
  /** Whether the client has gone, which nobody notices who does not read. */
  readonly isGone?: () => boolean;
};

/** What a session may hold without anybody's leave. */
const FREE_BYTES = 1024 * 1024;

/** A session that has been opened; the transport tells it what happens. */
export interface OpenSession {
  receive(bytes: Uint8Array): void;
  drained(): void;
  /** What the transport holds of input has changed. */
  held(): void;
  /** The client is through the negotiation of capabilities. */
  readonly negotiated: boolean;
  /** The client sends no more; `whenAnswered` is called once what it has sent is answered. */
  endOfInput(whenAnswered: () => void): void;
  /** The connection has gone. */
  disconnected(): void;
}

export class SessionHost {
  readonly #dispatcher: Dispatcher;
  readonly #events: EventHub;
  readonly #logger: Logger;
  readonly #open = new Set<QmpSession>();
  #serving = false;
  #waiting: (() => void)[] = [];

  constructor(dispatcher: Dispatcher, events: EventHub, logger: Logger) {
    this.#dispatcher = dispatcher;
    this.#events = events;
    this.#logger = logger;
  }

  /** Clients that are connected now. */
  get clientCount(): number {
    return this.#open.size;
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

  /** Opens a session and greets the client; `peer` names it in the log. */
  open(transport: Transport, pretty: boolean, peer: string): OpenSession {
    const logger = this.#logger;
    const holder = clientMemory.open(() => {
      logger.warn({ peer }, 'QMP client cut off: it holds memory that others wait for');
      transport.close();
    }, transport.isGone);
    // Reading stops while the session has enough to do, and while there is no memory for more.
    let isBusy = false;
    let lacksMemory = false;
    const settle = (): void => {
      if (isBusy || lacksMemory) transport.pause();
      else transport.resume();
    };
    const account = (): void => {
      const bytes = session.heldBytes + (transport.heldBytes?.() ?? 0);
      const more = bytes - holder.bytes;
      if (more > 0 && bytes > FREE_BYTES && !clientMemory.fits(more, false) && !lacksMemory) {
        lacksMemory = true;
        settle();
        clientMemory.wait(goOn);
      }
      clientMemory.set(holder, bytes);
    };
    const goOn = (): void => {
      if (!clientMemory.fits(FREE_BYTES, false)) {
        clientMemory.wait(goOn);
        return;
      }
      lacksMemory = false;
      settle();
    };
    const session = new QmpSession({
      ...transport,
      pause: () => {
        isBusy = true;
        settle();
      },
      resume: () => {
        isBusy = false;
        settle();
      },
      dispatcher: logged(this.#dispatcher, logger, peer),
      pretty,
      reportBug: (error) => logger.error({ err: error, peer }, 'a command failed in an unexpected way'),
    });
    const unsubscribe = this.#events.subscribe(session);
    this.#open.add(session);
    session.start();
    logger.info({ peer }, 'QMP client connected');
    return {
      receive: (bytes) => {
        session.receive(bytes);
        account();
      },
      held: account,
      drained: () => {
        session.drained();
        account();
      },
      get negotiated() {
        return session.negotiated;
      },
      endOfInput: (whenAnswered) => session.endOfInput(whenAnswered),
      disconnected: () => {
        this.#open.delete(session);
        unsubscribe();
        session.disconnected();
        clientMemory.close(holder);
        logger.info({ peer }, 'QMP client disconnected');
      },
    };
  }

  /** Notes in the log that a client was turned away. */
  refused(peer: string, reason: string): void {
    this.#logger.warn({ peer, reason }, 'QMP client refused');
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

/** The dispatcher with a line of the log for each command. Arguments are left out: some are secrets. */
function logged(dispatcher: Dispatcher, logger: Logger, peer: string): Dispatcher {
  const failed = (command: string, error: unknown): void =>
    logger.debug(
      { peer, command, error: error instanceof Error ? error.message : error },
      'QMP command failed',
    );
  return {
    has: (name) => dispatcher.has(name),
    letOthersGo: () => dispatcher.letOthersGo(),
    execute(name, args, session) {
      logger.debug({ peer, command: name }, 'QMP command');
      try {
        const result = dispatcher.execute(name, args, session);
        if (result instanceof Promise) result.catch((error: unknown) => failed(name, error));
        return result;
      } catch (error) {
        failed(name, error);
        throw error;
      }
    },
  };
}
