/**
 * A descriptor that a foreign library owns, watched for what the library wants at the time.
 *
 * Libraries that connect anew put the new socket under the old number (dup2): the kernel forgets the old one then, and
 * whoever watches by number waits for ever. So each descriptor is in an epoll instance of its own, and is put there anew
 * whenever the library waits for something else. The library is only called on the main thread.
 */

import { BlockError } from '../../errors/error.ts';
import { createEpoll, renewEpoll } from '../descriptors.ts';
import { closeFd, pollNow } from '../ffi.ts';
import { createWatch } from '../poller.ts';

export interface ForeignOwner {
  /** The descriptor now; negative: there is none. */
  descriptor(): number;
  /** What to wait for: bits of poll(2); 0: nothing. */
  wanted(): number;
  /** Something of it has happened (bits of poll(2)), or a tick is due (0). How many requests are over by that. */
  service(events: number): number;
  /** Requests that are not over. */
  underWay(): number;
}

export interface ForeignDescriptor {
  /** Asks anew what to wait for: after every call that gave the library something to do. */
  renew(): void;
  /** Stops watching, before the library closes its descriptor. */
  close(): void;
}

/** Libraries see to their time-outs and connect anew when nothing happens, too. */
const TICK_MS = 500;
const POLLIN = 1;
const POLLOUT = 4;

export function watchForeign(owner: ForeignOwner): ForeignDescriptor {
  const epoll = createEpoll();
  if (epoll < 0) throw new BlockError('Cannot create an epoll instance', { errno: -epoll });
  let isOpen = true;
  let serving = false;
  let flushing = false;
  /** What the kernel was told last. */
  let knownFd = -1;
  let knownWanted = -1;

  const serve = (events: number): number => {
    if (!isOpen || serving) return 0;
    serving = true;
    try {
      return owner.service(events);
    } finally {
      serving = false;
      renew();
    }
  };
  /**
   * Tells the kernel what to wait for. A library that connects anew waits for other events meanwhile, and the kernel is
   * told anew by that; should that once not be so, the next tick does it.
   */
  const arm = (anyway: boolean): void => {
    const fd = owner.descriptor();
    if (fd < 0) return;
    const wanted = owner.wanted();
    if (!anyway && fd === knownFd && wanted === knownWanted) return;
    renewEpoll(epoll, fd, wanted);
    knownFd = fd;
    knownWanted = wanted;
  };
  /** What the calls of this turn have given the library to send goes out at once, where the socket takes it. */
  const flush = (): void => {
    flushing = false;
    if (!isOpen) return;
    const fd = owner.descriptor();
    const hasData = fd >= 0 && (owner.wanted() & POLLOUT) !== 0;
    if (hasData && fd === knownFd && pollNow(fd, POLLOUT) === POLLOUT) {
      serving = true;
      try {
        owner.service(POLLOUT);
      } finally {
        serving = false;
      }
    }
    if (isOpen) arm(false);
  };
  const renew = (): void => {
    if (!isOpen || serving || flushing) return;
    flushing = true;
    queueMicrotask(flush);
  };
  const watch = createWatch(
    epoll,
    () => {
      const fd = owner.descriptor();
      const wanted = fd < 0 ? 0 : owner.wanted();
      // Nothing else can have happened, but for the end of the connection, which reading finds.
      const found = wanted === POLLIN ? POLLIN : wanted === 0 ? 0 : pollNow(fd, wanted);
      if (found !== 0) return serve(found);
      arm(true);
      return 0;
    },
    owner.underWay,
  );
  const tick = setInterval(() => {
    serve(0);
    if (isOpen) arm(true);
  }, TICK_MS);
  watch.start();
  arm(true);
  return {
    renew,
    close() {
      if (!isOpen) return;
      isOpen = false;
      clearInterval(tick);
      watch.stop();
      closeFd(epoll);
    },
  };
}
