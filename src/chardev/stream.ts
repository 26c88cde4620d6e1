/**
 * A backend over a pair of node streams: what files, FIFOs, terminals and standard input and output have in common.
 */

import type { Readable, Writable } from 'node:stream';
import type { ChardevBackendKind } from '../../schema/generated/types.ts';
import { type BackendEvents, type ChardevBackend, ignore } from './backend.ts';

export interface StreamSettings {
  readonly kind: ChardevBackendKind;
  readonly filename: string;
  readonly input: Readable | null;
  readonly output: Writable | null;
  readonly pty?: string;
  /** Releases the streams; by default they are destroyed. */
  readonly close?: () => void;
}

/** Wraps streams. End of input is not the end of the device: output goes on, as in the original. */
export function streamBackend({ kind, filename, input, output, pty, close }: StreamSettings): ChardevBackend {
  let events: BackendEvents | null = null;
  let reading = true;
  const onData = (data: Buffer): void => events?.received(data);
  input?.on('error', ignore);
  if ((output as unknown) !== input) output?.on('error', ignore);
  output?.on('drain', () => events?.drained());

  const listen = (): void => {
    if (input === null) return;
    input.off('data', onData);
    if (events !== null && reading) input.on('data', onData).resume();
    else input.pause();
  };
  return {
    kind,
    typeName: `chardev-${kind}`,
    accessors: {},
    ...(pty !== undefined && { pty }),
    filename: () => filename,
    start: (newEvents) => {
      events = newEvents;
      events.opened();
      listen();
    },
    stop: () => {
      events = null;
      listen();
    },
    write: (data) => {
      if (output !== null && !output.destroyed && output.writable) output.write(data);
    },
    backlogBytes: () => output?.writableLength ?? 0,
    setReading: (wanted) => {
      if (wanted === reading) return;
      reading = wanted;
      listen();
    },
    close: () => {
      events = null;
      if (close !== undefined) close();
      else {
        input?.destroy();
        // What was written before is still to be taken by the file.
        output?.end(() => output.destroy());
      }
    },
  };
}
