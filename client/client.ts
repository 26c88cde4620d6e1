/**
 * The typed QMP client: one connection to a daemon, its commands as methods, its events as async iterators.
 *
 * Works wherever there is a transport (transport.ts): over sockets and WebSockets in Node (node.ts), over WebSockets in
 * web pages (browser.ts). Types and methods are generated from the schema of the daemon. Integers beyond 2^53, which
 * JavaScript numbers do not hold, are rounded.
 */

import { COMMAND_OF_METHOD, type CommandMethods } from '../schema/generated/client.ts';
import type { Commands, Events } from '../schema/generated/types.ts';
import { ConnectionLostError, QmpError } from './errors.ts';
import { createEventHub, type QmpEvent, type Reconnected } from './events.ts';
import { createJob, type Job } from './job.ts';
import type { Connect, Transport, TransportUser } from './transport.ts';

export interface CallOptions {
  /** Gives up waiting for the answer. The daemon carries the command out all the same. */
  readonly signal?: AbortSignal;
  /** Ask for execution out of band; the daemon says which commands can. */
  readonly oob?: boolean;
}

export interface ClientOptions {
  /** Ends the attempt to connect, and to connect again. */
  readonly signal?: AbortSignal;
  /** Connect again when the connection is lost. Default: false. Commands sent meanwhile wait. */
  readonly reconnect?: boolean;
  /** Longest pause between two attempts to connect again, in ms. Default: 5000. */
  readonly maxReconnectDelayMs?: number;
}

export interface Greeting {
  readonly version: {
    readonly qemu: { readonly major: number; readonly minor: number; readonly micro: number };
    readonly package: string;
  };
  readonly capabilities: readonly string[];
}

/** What every client has beside the commands. */
export interface ClientBase {
  /** What the daemon said of itself when the connection was made last. */
  readonly greeting: Greeting;
  /** Runs a command by its name. Rejects with QmpError, ConnectionLostError, or the signal's reason. */
  execute<K extends keyof Commands>(
    command: K,
    args?: Commands[K]['args'],
    options?: CallOptions,
  ): Promise<Commands[K]['ret']>;
  /** Events of the given names (all when none is given) from this call on. Ends with the client. */
  events<K extends keyof Events>(
    names?: K | readonly K[],
    options?: { readonly signal?: AbortSignal },
  ): AsyncIterableIterator<QmpEvent<K>>;
  /** The same, and `{name: 'reconnected'}` where events may have been missed. */
  eventsAndReconnects<K extends keyof Events>(
    names?: K | readonly K[],
    options?: { readonly signal?: AbortSignal },
  ): AsyncIterableIterator<QmpEvent<K> | Reconnected>;
  /** The job of that id, which need not exist yet. */
  job(id: string): Job;
  /** Ends the connection; commands that wait for an answer are rejected. */
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

/** A client: `client.blockdevAdd({...})`, `client.execute('blockdev-add', {...})`, `client.events('JOB_STATUS_CHANGE')`. */
export type Client = ClientBase & CommandMethods;

interface Pending {
  readonly command: string;
  readonly resolve: (value: never) => void;
  readonly reject: (error: Error) => void;
}

interface Message {
  readonly QMP?: Greeting;
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
  readonly id?: unknown;
  readonly event?: string;
  readonly data?: unknown;
  readonly timestamp?: { readonly seconds: number; readonly microseconds: number };
}

/** One negotiated connection. */
interface Session {
  readonly transport: Transport;
  readonly pending: Map<number, Pending>;
  greeting: Greeting | null;
}

/** Connects and negotiates; the client is ready for commands when this resolves. */
export async function createClient(connect: Connect, options: ClientOptions = {}): Promise<Client> {
  const state = new ClientState(connect, options);
  await state.open();
  const base: ClientBase = {
    get greeting() {
      return state.greeting;
    },
    execute: (command, args, call) => state.execute(command, args, call),
    events: ((names?: string | readonly string[], { signal }: { signal?: AbortSignal } = {}) =>
      state.hub.listen(listOf(names), { signal })) as ClientBase['events'],
    eventsAndReconnects: ((names?: string | readonly string[], { signal }: { signal?: AbortSignal } = {}) =>
      state.hub.listen(listOf(names), { signal, reconnects: true })) as ClientBase['eventsAndReconnects'],
    job: (id) => createJob(base, id),
    close: () => state.close(),
    [Symbol.asyncDispose]: () => state.close(),
  };
  for (const [method, command] of Object.entries(COMMAND_OF_METHOD)) {
    Object.defineProperty(base, method, {
      value: (args?: never, call?: CallOptions) => state.execute(command, args, call),
    });
  }
  return base as Client;
}

function listOf(names: string | readonly string[] | undefined): readonly (keyof Events)[] {
  return (
    names === undefined ? [] : typeof names === 'string' ? [names] : names
  ) as readonly (keyof Events)[];
}

class ClientState {
  readonly hub = createEventHub();
  readonly #connect: Connect;
  readonly #options: ClientOptions;
  readonly #closing = new AbortController();
  #session: Session | null = null;
  #greeting: Greeting | null = null;
  /** While the connection is made again: resolves when commands can be sent. */
  #reopening: Promise<void> | null = null;
  #ended: Promise<void> = Promise.resolve();
  #lastId = 0;

  constructor(connect: Connect, options: ClientOptions) {
    this.#connect = connect;
    this.#options = options;
  }

  get greeting(): Greeting {
    if (this.#greeting === null) throw new ConnectionLostError('The client has never been connected');
    return this.#greeting;
  }

  async open(): Promise<void> {
    const signals = [this.#closing.signal, this.#options.signal].filter((signal) => signal !== undefined);
    const signal = AbortSignal.any(signals);
    const pending = new Map<number, Pending>();
    let session: Session | null = null;
    let greeted: (greeting: Greeting) => void = () => undefined;
    let failed: (error: Error) => void = () => undefined;
    let ended: () => void = () => undefined;
    const greeting = new Promise<Greeting>((resolve, reject) => {
      greeted = resolve;
      failed = reject;
    });
    greeting.catch(() => undefined); // it may fail before anybody waits for it
    const user: TransportUser = {
      message: (text) => {
        const message = parse(text);
        if (message === null) {
          // Nothing after this can be trusted to be an answer to anything.
          failed(new ConnectionLostError('What answers does not speak QMP'));
          session?.transport.close();
        } else if (message.QMP !== undefined) greeted(message.QMP);
        else if (message.event !== undefined) this.#event(message);
        else answer(pending, message);
      },
      closed: (error) => {
        const lost = new ConnectionLostError(error?.message);
        failed(lost);
        ended();
        for (const { reject } of pending.values()) reject(lost);
        pending.clear();
        if (session !== null && this.#session === session) this.#lost(lost);
      },
    };
    const transport = await this.#connect(user, signal);
    this.#ended = new Promise((resolve) => {
      ended = resolve;
    });
    session = { transport, pending, greeting: null };
    const abort = (): void => {
      failed(signal.reason);
      transport.close();
    };
    signal.addEventListener('abort', abort, { once: true });
    try {
      this.#greeting = await greeting;
      const enable = this.#greeting.capabilities.filter((capability) => capability === 'oob');
      await this.#send(session, 'qmp_capabilities', { enable }, {});
    } catch (error) {
      transport.close();
      throw error;
    } finally {
      signal.removeEventListener('abort', abort);
    }
    this.#session = session;
  }

  async execute<K extends keyof Commands>(
    command: K,
    args: Commands[K]['args'] | undefined,
    options: CallOptions = {},
  ): Promise<Commands[K]['ret']> {
    options.signal?.throwIfAborted();
    while (this.#session === null) {
      if (this.#reopening === null) throw new ConnectionLostError('The client is closed');
      await orAborted(this.#reopening, options.signal);
    }
    return this.#send(this.#session, command, args, options) as Promise<Commands[K]['ret']>;
  }

  async close(): Promise<void> {
    this.#closing.abort(new ConnectionLostError('The client is closed'));
    const session = this.#session;
    this.#session = null;
    this.#reopening = null;
    this.hub.end(null);
    session?.transport.close();
    await this.#ended;
  }

  #send(session: Session, command: string, args: unknown, { signal, oob }: CallOptions): Promise<unknown> {
    const id = ++this.#lastId;
    const answered = new Promise<unknown>((resolve, reject) => {
      session.pending.set(id, { command, resolve, reject });
    });
    const verb = oob === true ? 'exec-oob' : 'execute';
    const text = JSON.stringify({ [verb]: command, ...(args === undefined ? {} : { arguments: args }), id });
    session.transport.send(`${text}\n`);
    // An answer that nobody waits for any more is read and forgotten.
    return orAborted(answered, signal);
  }

  #event({ event, data, timestamp }: Message): void {
    const timeMs = (timestamp?.seconds ?? 0) * 1000 + (timestamp?.microseconds ?? 0) / 1000;
    this.hub.emit({ name: event, data: data ?? {}, timeMs } as QmpEvent);
  }

  #lost(error: Error): void {
    this.#session = null;
    if (this.#options.reconnect !== true || this.#closing.signal.aborted) {
      this.hub.end(error);
      return;
    }
    this.#reopening = this.#reopen();
    this.#reopening.catch(() => undefined); // told to whoever executes a command
  }

  async #reopen(): Promise<void> {
    const { signal = this.#closing.signal, maxReconnectDelayMs = 5000 } = this.#options;
    for (let delayMs = 50; ; delayMs = Math.min(delayMs * 2, maxReconnectDelayMs)) {
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      if (this.#closing.signal.aborted || signal.aborted) {
        const reason: Error = this.#closing.signal.aborted ? this.#closing.signal.reason : signal.reason;
        this.hub.end(reason);
        throw reason;
      }
      try {
        await this.open();
      } catch {
        continue;
      }
      this.#reopening = null;
      this.hub.emit({ name: 'reconnected' });
      return;
    }
  }
}

function parse(text: string): Message | null {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? value : null;
  } catch {
    return null;
  }
}

function answer(pending: Map<number, Pending>, { id, error, return: value }: Message): void {
  const found = typeof id === 'number' ? pending.get(id) : undefined;
  if (found === undefined) return; // an error without an id: something that was no command
  pending.delete(id as number);
  if (error === undefined) found.resolve(value as never);
  else found.reject(new QmpError(found.command, error.class, error.desc));
}

function orAborted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason);
    if (signal.aborted) abort();
    else signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}
