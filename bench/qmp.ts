/** A QMP connection for measurements: commands, and the moment an event comes. */

import { connect, type Socket } from 'node:net';

export interface QmpEvent {
  readonly event: string;
  readonly data: Readonly<Record<string, unknown>>;
}

export class BenchQmp {
  readonly #socket: Socket;
  readonly #replies: ((message: { return?: unknown; error?: { desc: string } }) => void)[] = [];
  readonly #watchers = new Set<(event: QmpEvent) => void>();
  #partial = '';

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#receive(text));
  }

  /** Connects and negotiates. */
  static async connect(path: string): Promise<BenchQmp> {
    const socket = connect(path);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', () => resolve());
      socket.once('error', reject);
    });
    const qmp = new BenchQmp(socket);
    await qmp.execute('qmp_capabilities');
    return qmp;
  }

  /** Runs a command; throws its error. */
  execute(name: string, args?: object): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.#replies.push((message) => {
        if (message.error === undefined) resolve(message.return);
        else reject(new Error(`${name}: ${message.error.desc}`));
      });
      this.#socket.write(`${JSON.stringify({ execute: name, ...(args && { arguments: args }) })}\n`);
    });
  }

  /** Resolves with the first event from now on that `isWanted` accepts. */
  waitFor(isWanted: (event: QmpEvent) => boolean): Promise<QmpEvent> {
    return new Promise((resolve) => {
      const watch = (event: QmpEvent): void => {
        if (!isWanted(event)) return;
        this.#watchers.delete(watch);
        resolve(event);
      };
      this.#watchers.add(watch);
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #receive(text: string): void {
    const lines = (this.#partial + text).split('\n');
    this.#partial = lines.pop() ?? '';
    for (const line of lines) {
      if (line.trim() === '') continue;
      const message = JSON.parse(line) as QmpEvent & { return?: unknown; error?: { desc: string } };
      if ('event' in message) for (const watch of [...this.#watchers]) watch(message);
      else if ('return' in message || 'error' in message) this.#replies.shift()?.(message);
    }
  }
}
