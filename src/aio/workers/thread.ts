/** The inside of a thread of pool.ts: takes messages, keeps tools, says when a job is done. */

import { parentPort, workerData } from 'node:worker_threads';
import koffi from 'koffi';
import { assert } from '../../errors/error.ts';
import { type FromThread, type ToThread, Word } from './messages.ts';

export interface ThreadTool {
  /** Works on `buf` in place; `job` is the message. */
  use(buf: Buffer, job: unknown): void;
  close(): void;
}

/** Serves jobs with tools that `make` makes, until the thread is ended. */
export function serveThread(make: (description: unknown) => ThreadTool): void {
  const port = parentPort;
  assert(port !== null, 'in a worker');
  const words = workerData as Int32Array;
  const tools = new Map<number, ThreadTool>();
  const answer = (message: FromThread): void => port.postMessage(message);
  const obey = (message: ToThread): void => {
    switch (message.kind) {
      case 'open':
        tools.set(message.tool, make(message.description));
        return;
      case 'job': {
        const tool = tools.get(message.tool);
        assert(tool !== undefined, 'a tool that was opened');
        const memory = koffi.view(BigInt(message.addr), message.bytes) as ArrayBuffer;
        tool.use(Buffer.from(memory), message);
        answer({ job: message.job, error: null });
        return;
      }
      case 'close':
        tools.get(message.tool)?.close();
        tools.delete(message.tool);
        return;
      default:
        port.close();
    }
  };
  port.on('message', (message: ToThread) => {
    // In this order: who ends the process says stop, and then looks whether this is busy.
    Atomics.store(words, Word.busy, 1);
    try {
      if (Atomics.load(words, Word.stop) === 0) obey(message);
    } catch (error) {
      // A tool that could not be made is missed by its first job.
      if (message.kind === 'job') answer({ job: message.job, error: String(error) });
    } finally {
      beIdle(words);
    }
  });
  answer({ job: 0, error: null });
  beIdle(words);
}

function beIdle(words: Int32Array): void {
  Atomics.store(words, Word.busy, 0);
  Atomics.notify(words, Word.busy);
}
