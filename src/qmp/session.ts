/**
 * One QMP session: greeting, capability negotiation, commands in, replies and events out.
 *
 * It knows nothing of transports: bytes come in by `receive`, text goes out by `send`. UNIX and TCP sockets, stdio,
 * WebSockets and character devices share it.
 *
 * Flow control, so that no client can make the daemon grow:
 * - One command runs at a time. Meanwhile one more is read, and with the oob capability up to QUEUE_MAX, so that
 *   out-of-band commands are seen (none exists yet: each is refused). Then `pause` is called.
 * - While the transport is congested (`send` returned false, `drained` not called yet) no command is started or read.
 * - Events go out all the same, up to EVENT_BACKLOG_MAX of text; a client that lets more pile up is cut off, since a
 *   stream of events with a hole in it would mislead it.
 */

import { nextTurn } from '../aio/host/turns.ts';
import { BlockError, explained, userText } from '../errors/error.ts';
import { writeOrder } from '../errors/member-order.ts';
import { commandNotFound, type Dispatcher } from './dispatch.ts';
import { type JsonItem, JsonReader } from './json-parse.ts';
import { isLong, printJson, printJsonPretty, printJsonSlices } from './json-print.ts';
import { isJsonObject, type JsonObject, type JsonValue } from './json-value.ts';
import { VERSION_INFO } from './version.ts';

export interface SessionOptions {
  readonly dispatcher: Dispatcher;
  /** Sends text. False: the peer does not keep up; `drained` is to be called when it does again. */
  readonly send: (text: string) => boolean;
  /** Each call of `send` is a message of its own; default: they may be parts. */
  readonly wholeMessages?: boolean;
  /** Ends the connection; `disconnected` is to be called when it has gone. */
  readonly close: () => void;
  /** Stops and restarts the calls of `receive`. A few pieces under way may still come after `pause`. */
  readonly pause: () => void;
  readonly resume: () => void;
  /** Indent the output. */
  readonly pretty?: boolean;
  /** Called with an error that is no BlockError: a bug, which the client sees as a GenericError. */
  readonly reportBug?: (error: unknown) => void;
}

/** In-band commands that wait while one runs, with the oob capability and without. */
const QUEUE_MAX = 8;
const QUEUE_MAX_WITHOUT_OOB = 1;
/** How long `quit` waits for the command before it. */
const QUIT_PATIENCE_MS = 1000;
/** Milliseconds after which a session that has more to read and run lets others have a turn. */
const TURN_MS = 5;
/** Characters of events that may wait for a client that does not read. */
const EVENT_BACKLOG_MAX = 4 * 1024 * 1024;
/** Bytes that a transport may deliver after `pause`. */
const INPUT_BACKLOG_MAX = 16 * 1024 * 1024;

interface Request {
  readonly name: string;
  readonly args: JsonObject | undefined;
  readonly id: JsonValue | undefined;
}

type Queued = Request | { readonly error: BlockError; readonly id: JsonValue | undefined };

export class QmpSession {
  readonly #options: SessionOptions;
  readonly #reader = new JsonReader();
  /** Input that came while the reader still had some, and its size. */
  readonly #input: Uint8Array[] = [];
  #inputBytes = 0;
  readonly #queue: Queued[] = [];
  #state: 'negotiation' | 'command' | 'finished' | 'closed' = 'negotiation';
  #oob = false;
  #busy = false;
  #pumping = false;
  #paused = false;
  #congested = false;
  /** A long reply is being printed, and events that came meanwhile. */
  #printing = false;
  readonly #heldEvents: string[] = [];
  #later: NodeJS.Immediate | null = null;
  #eventBacklog = 0;
  #afterReply: (() => void) | null = null;
  #whenAnswered: (() => void) | null = null;

  constructor(options: SessionOptions) {
    this.#options = options;
  }

  /** Sends the greeting. */
  start(): void {
    this.#print({ QMP: { version: VERSION_INFO, capabilities: ['oob'] } });
  }

  /** Capabilities have been negotiated: events are wanted. */
  get negotiated(): boolean {
    return this.#state === 'command' || this.#state === 'finished';
  }

  /** Memory that the client's messages take which have not been answered, about. */
  get heldBytes(): number {
    return this.#inputBytes + this.#reader.heldBytes;
  }

  get pretty(): boolean {
    return this.#options.pretty === true;
  }

  /** Takes bytes from the client, in any pieces. They must not change afterwards. */
  receive(bytes: Uint8Array): void {
    if (this.#state === 'closed' || this.#state === 'finished' || bytes.length === 0) return;
    this.#input.push(bytes);
    this.#inputBytes += bytes.length;
    if (this.#inputBytes > INPUT_BACKLOG_MAX) {
      this.close();
      return;
    }
    this.#pump();
  }

  /** The transport takes text again. */
  drained(): void {
    this.#congested = false;
    this.#eventBacklog = 0;
    this.#pump();
  }

  /** The client sends no more. `whenAnswered` is called once what it has sent is answered. */
  endOfInput(whenAnswered: () => void): void {
    this.#whenAnswered = whenAnswered;
    this.#pump();
  }

  /** The connection has gone. A command that runs goes on; its result is dropped. */
  disconnected(): void {
    this.#state = 'closed';
    this.#inputBytes = 0;
    this.#input.length = 0;
    this.#queue.length = 0;
  }

  /** Ends the session from our side. */
  close(): void {
    if (this.#state === 'closed') return;
    this.disconnected();
    this.#options.close();
  }

  /** Ends capability negotiation (command qmp_capabilities). */
  negotiate(capabilities: readonly string[]): void {
    if (this.#state !== 'negotiation') {
      throw commandNotFound('Capabilities negotiation is already complete, command ignored');
    }
    this.#state = 'command';
    this.#oob = capabilities.includes('oob');
  }

  /** Reads no more commands; calls `action` when the reply to the one that runs has been sent (command quit). */
  finish(action: () => void): void {
    this.#afterReply = action;
  }

  /** Sends the text of an event (with its line end), if the client has negotiated. */
  deliverEvent(text: string): void {
    if (!this.negotiated) return;
    if (this.#congested || this.#printing) {
      this.#eventBacklog += text.length;
      if (this.#eventBacklog > EVENT_BACKLOG_MAX) {
        this.close();
        return;
      }
    }
    if (this.#printing) this.#heldEvents.push(text);
    else this.#send(text);
  }

  /** Reads and runs what can be read and run now. */
  #pump(): void {
    if (this.#pumping) return;
    this.#pumping = true;
    const turnEnds = performance.now() + TURN_MS;
    try {
      // Each step reads or runs one item.
      while (this.#step()) {
        if (performance.now() < turnEnds) continue;
        this.#goOnLater();
        break;
      }
    } finally {
      this.#pumping = false;
    }
    const isReading = this.#inputBytes > 0 || this.#reader.busy;
    this.#setPaused(this.#state === 'finished' || isReading);
    const pending = this.#busy || this.#printing || this.#congested || this.#queue.length > 0 || isReading;
    if (this.#whenAnswered === null || pending) return;
    const whenAnswered = this.#whenAnswered;
    this.#whenAnswered = null;
    whenAnswered();
  }

  /** Others get a turn first. */
  #goOnLater(): void {
    if (this.#later !== null) return;
    this.#later = setImmediate(() => {
      this.#later = null;
      this.#pump();
    });
  }

  /** Whether there may be more to do. */
  #step(): boolean {
    if (this.#state === 'closed' || this.#state === 'finished' || this.#congested || this.#printing)
      return false;
    if (!this.#busy) {
      const queued = this.#queue.shift();
      if (queued !== undefined) {
        this.#run(queued);
        return true;
      }
    }
    if (this.#queue.length >= (this.#oob ? QUEUE_MAX : QUEUE_MAX_WITHOUT_OOB)) return false;
    const item = this.#reader.next();
    if (item === null) return this.#reader.busy || this.#nextInput();
    const queued = this.#toRequest(item);
    if (this.#isOutOfBand(item)) this.#answerOutOfBand(queued);
    else if (this.#busy) this.#enqueue(queued);
    else this.#run(queued);
    return true;
  }

  /** A command waits for the one that runs; the end of the daemon does so for a while only. */
  #enqueue(queued: Queued): void {
    this.#queue.push(queued);
    if ('error' in queued || queued.name !== 'quit') return;
    setTimeout(() => {
      const index = this.#queue.indexOf(queued);
      if (index < 0 || this.#state !== 'command') return;
      this.#queue.splice(index, 1);
      this.#run(queued);
    }, QUIT_PATIENCE_MS).unref();
  }

  /** Messages that overtake what is queued, were they even wrong. */
  #isOutOfBand(item: JsonItem): boolean {
    if (!this.#oob || 'error' in item || !isJsonObject(item.value)) return false;
    return 'exec-oob' in item.value && !('execute' in item.value);
  }

  #nextInput(): boolean {
    const next = this.#input.shift();
    if (next === undefined) return false;
    this.#inputBytes -= next.length;
    this.#reader.push(next);
    return true;
  }

  #setPaused(paused: boolean): void {
    if (this.#paused === paused || this.#state === 'closed') return;
    this.#paused = paused;
    if (paused) this.#options.pause();
    else this.#options.resume();
  }

  /** Checks the frame of a command, members in the order in which the original looks at them. */
  #toRequest(item: JsonItem): Queued {
    if ('error' in item) return { error: new BlockError(item.error), id: undefined };
    const message = item.value;
    if (!isJsonObject(message))
      return { error: new BlockError('QMP input must be a JSON object'), id: undefined };
    const { id } = message;
    try {
      return { ...this.#checkFrame(message), id };
    } catch (error) {
      if (error instanceof BlockError) return { error, id };
      throw error;
    }
  }

  #checkFrame(message: JsonObject): Omit<Request, 'id'> {
    let name: string | undefined;
    let args: JsonObject | undefined;
    for (const member of writeOrder(Object.keys(message))) {
      const value = message[member];
      if (member === 'execute' || (member === 'exec-oob' && this.#oob)) {
        if (typeof value !== 'string') throw new BlockError(`QMP input member '${member}' must be a string`);
        if (name !== undefined) throw new BlockError("QMP input member 'execute' clashes with 'exec-oob'");
        name = value;
      } else if (member === 'arguments') {
        if (!isJsonObject(value)) throw new BlockError("QMP input member 'arguments' must be an object");
        args = value;
      } else if (member !== 'id') {
        throw new BlockError(`QMP input member '${member}' is unexpected`);
      }
    }
    if (name === undefined) throw new BlockError("QMP input lacks member 'execute'");
    return { name, args };
  }

  /** No command may run out of band yet. */
  #answerOutOfBand(queued: Queued): void {
    if ('error' in queued) this.#replyError(queued.error, queued.id);
    else if (this.#options.dispatcher.has(queued.name)) {
      this.#replyError(new BlockError(`The command ${queued.name} does not support OOB`), queued.id);
    } else this.#replyError(commandNotFound(`The command ${queued.name} has not been found`), queued.id);
  }

  #run(queued: Queued): void {
    if ('error' in queued) {
      this.#replyError(queued.error, queued.id);
      return;
    }
    try {
      if (this.#state === 'negotiation' && queued.name !== 'qmp_capabilities') {
        throw commandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'");
      }
      const result = this.#options.dispatcher.execute(queued.name, queued.args, this);
      if (result instanceof Promise) {
        this.#busy = true;
        void this.#settle(result, queued);
      } else {
        this.#replyValue(result, queued.id);
      }
    } catch (error) {
      this.#replyError(error, queued.id, `'${queued.name}'`);
    }
  }

  async #settle(result: Promise<unknown>, { name, id }: Request): Promise<void> {
    try {
      this.#replyValue(await result, id);
    } catch (error) {
      this.#replyError(await explained(error), id, `'${name}'`);
    }
    this.#busy = false;
    this.#pump();
  }

  #replyValue(value: unknown, id: JsonValue | undefined): void {
    this.#reply({ return: value, ...(id !== undefined && { id }) });
  }

  #replyError(error: unknown, id: JsonValue | undefined, doing = 'the QMP session'): void {
    if (!(error instanceof BlockError)) this.#options.reportBug?.(error);
    const desc = userText(error, doing);
    const errorClass = error instanceof BlockError ? error.errorClass : 'GenericError';
    this.#reply({ error: { class: errorClass, desc }, ...(id !== undefined && { id }) });
  }

  #reply(message: object): void {
    if (!this.pretty && isLong(message)) {
      void this.#replyInSlices(message);
      return;
    }
    this.#print(message);
    this.#replied();
  }

  /** Others have turns while a long reply is printed; this session does nothing else meanwhile. */
  async #replyInSlices(message: object): Promise<void> {
    this.#printing = true;
    const { wholeMessages = false } = this.#options;
    const parts: string[] = [];
    for (const part of printJsonSlices(message)) {
      if (wholeMessages) parts.push(part);
      else this.#send(part);
      await nextTurn();
      if (this.#state === 'closed') return;
    }
    this.#printing = false;
    this.#send(`${parts.join('')}\r\n`);
    for (const event of this.#heldEvents.splice(0)) this.deliverEvent(event);
    this.#replied();
    this.#pump();
  }

  /** A reply is on its way. */
  #replied(): void {
    const action = this.#afterReply;
    if (action === null) return;
    this.#afterReply = null;
    if (this.#state !== 'closed') this.#state = 'finished';
    action();
  }

  #print(message: object): void {
    if (this.#state === 'closed') return;
    this.#send(`${this.pretty ? printJsonPretty(message) : printJson(message)}\r\n`);
  }

  #send(text: string): void {
    if (!this.#options.send(text)) this.#congested = true;
  }
}
