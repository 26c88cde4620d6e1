/**
 * libuv's poll handles on the main thread's loop: a plain call when a descriptor becomes readable or writable.
 *
 * The handles are memory of ours that libuv uses until it says that it has let go of them. The calls come out of
 * libuv's poll phase, where node runs no microtasks and ticks afterwards: that is turn.ts.
 */

import koffi from 'koffi';
import { addressOf } from '../ffi.ts';

const self = koffi.load(null);
const defaultLoop = self.func('uv_default_loop', 'uintptr_t', []);
const pollInit = self.func('uv_poll_init', 'int', ['uintptr_t', 'uintptr_t', 'int']);
const pollStart = self.func('uv_poll_start', 'int', ['uintptr_t', 'int', 'void*']);
const pollStop = self.func('uv_poll_stop', 'int', ['uintptr_t']);
const closeHandle = self.func('uv_close', 'void', ['uintptr_t', 'void*']);

/** At least uv_handle_size(UV_POLL), which is 160 bytes in libuv 1.x. */
const HANDLE_BYTES = 512;

export const Readiness = { readable: 1, writable: 2 } as const;

export interface PollHandle {
  /** Which of Readiness.* to call for, level-triggered; 0: none. Something watched keeps the process alive. */
  watch(events: number): void;
  /** Stops watching; the descriptor may be closed at once. */
  close(): void;
}

interface Watched {
  readonly memory: Buffer;
  readonly onReady: (events: number) => void;
  readonly onError: () => void;
}

/** By the address of the handle's memory, from its making until libuv has let go of it. */
const handles = new Map<number, Watched>();

const pollCallback = koffi.register(
  (handle: bigint | number, status: number, events: number) => {
    const watched = handles.get(Number(handle));
    if (watched === undefined) return;
    // An error of the descriptor: whoever reads or writes it finds out what it is.
    if (status < 0) watched.onError();
    else watched.onReady(events);
  },
  koffi.pointer(koffi.proto('void (uintptr_t handle, int status, int events)')),
);
const closeCallback = koffi.register(
  (handle: bigint | number) => void handles.delete(Number(handle)),
  koffi.pointer(koffi.proto('void (uintptr_t handle)')),
);

/**
 * A handle for `fd`, which becomes non-blocking. Main thread only: the loop is uv_default_loop(). Throws the errno
 * (positive number) when the descriptor cannot be polled.
 */
export function openPoll(fd: number, onReady: (events: number) => void): PollHandle {
  const memory = Buffer.allocUnsafeSlow(HANDLE_BYTES).fill(0);
  const address = addressOf(memory);
  const result: number = pollInit(defaultLoop(), address, fd);
  if (result < 0) throw -result;
  let watched = 0;
  let isOpen = true;
  handles.set(address, {
    memory,
    onReady,
    onError: () => {
      onReady(Readiness.readable | Readiness.writable);
      // libuv has stopped watching, but there may be more to be read before the error.
      if (isOpen && watched !== 0) pollStart(address, watched, pollCallback);
    },
  });
  return {
    watch: (events) => {
      if (!isOpen || events === watched) return;
      watched = events;
      if (events === 0) pollStop(address);
      else pollStart(address, events, pollCallback);
    },
    close: () => {
      if (!isOpen) return;
      isOpen = false;
      pollStop(address);
      closeHandle(address, closeCallback);
    },
  };
}
