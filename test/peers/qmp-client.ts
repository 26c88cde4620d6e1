/**
 * A small QMP client for tests: one UNIX-socket connection, messages in the order they arrive.
 *
 * It knows the framing (one JSON object a line) and nothing of commands. Replies are plain parsed JSON.
 */

import { connect, type Socket } from 'node:net';
import { limitMs } from '../patience.ts';

/** A parsed QMP message: greeting, reply or event. */
export type QmpMessage = Readonly<Record<string, unknown>>;

export class QmpClient {
  readonly #socket: Socket;
  readonly #messages: QmpMessage[] = [];
  #partial = '';
  #wake: (() => void) | null = null;
  #closed = false;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#receive(text));
    socket.on('close', () => {
      this.#closed = true;
      this.#wake?.();
    });
    socket.on('error', () => undefined); // 'close' follows, and is what readers see
  }

  /** Connects to a UNIX socket; does not read the greeting. */
  static connect(path: string): Promise<QmpClient> {
    return new Promise((resolve, reject) => {
      const socket = connect(path);
      socket.once('error', reject);
      socket.once('connect', () => {
        socket.off('error', reject);
        resolve(new QmpClient(socket));
      });
    });
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Sends text as it is. */
  send(text: string | Buffer): void {
    this.#socket.write(text);
  }

  /**
   * The next message in order of arrival; null when the peer has closed. Throws when nothing comes; with `silenceMs`,
   * for tests in which nothing should come, that is null too.
   */
  async next(silenceMs?: number): Promise<QmpMessage | null> {
    const timeoutMs = silenceMs ?? limitMs(30_000);
    const deadline = Date.now() + timeoutMs;
    while (this.#messages.length === 0) {
      const leftMs = deadline - Date.now();
      if (this.#closed) return null;
      if (leftMs <= 0 && silenceMs !== undefined) return null;
      if (leftMs <= 0) throw new Error(`no QMP message in ${timeoutMs / 1000} s`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, leftMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
      this.#wake = null;
    }
    return this.#messages.shift() ?? null;
  }

  /** Reads the greeting and negotiates. */
  async negotiate(): Promise<QmpMessage> {
    const greeting = await this.next();
    if (greeting === null) throw new Error('no QMP greeting');
    await this.execute('qmp_capabilities');
    return greeting;
  }

  /** Runs a command and returns its `return` value; throws with the error's `desc`. Events before it are dropped. */
  async execute(name: string, args?: object): Promise<unknown> {
    this.send(`${JSON.stringify({ execute: name, ...(args && { arguments: args }) })}\n`);
    for (;;) {
      const message = await this.next();
      if (message === null) throw new Error(`closed before the reply to ${name}`);
      if ('return' in message) return message.return;
      if ('error' in message) throw new Error((message.error as { desc: string }).desc);
    }
  }

  close(): void {
    this.#socket.destroy();
  }

  #receive(text: string): void {
    const lines = (this.#partial + text).split('\n');
    this.#partial = lines.pop() ?? '';
    for (const line of lines) {
      if (line.trim() !== '') this.#messages.push(JSON.parse(line) as QmpMessage);
    }
    this.#wake?.();
  }
}
