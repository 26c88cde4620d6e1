/**
 * A descriptor that a foreign library owns, watched for what the library wants at the time.
 *
 * Libraries that connect anew put the new socket under the old number (dup2): the kernel forgets the old one then, and
 * whoever watches by number waits for ever. So each descriptor is in an epoll instance of its own, and is put there anew
 * after every service. The library is only called on the main thread.
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
  /** Something of it has happened (bits of poll(2)), or a tick is due (0). */
  service(events: number): void;
}

export interface ForeignDescriptor {
  /** Asks anew what to wait for: after every call that gave the library something to do. */
  renew(): void;
  /** Stops watching, before the library closes its descriptor. */
  close(): void;
}

/** Libraries see to their time-outs and connect anew when nothing happens, too. */
const TICK_MS = 500;

export function watchForeign(owner: ForeignOwner): ForeignDescriptor {
  const epoll = createEpoll();
  if (epoll < 0) throw new BlockError('Cannot create an epoll instance', { errno: -epoll });
  let isOpen = true;
  let serving = false;
  const serve = (events: number): void => {
    if (!isOpen || serving) return;
    serving = true;
    try {
      owner.service(events);
    } finally {
      serving = false;
      renew();
    }
  };
  const renew = (): void => {
    if (!isOpen || serving) return;
    const fd = owner.descriptor();
    if (fd >= 0) renewEpoll(epoll, fd, owner.wanted());
  };
  const watch = createWatch(epoll, () => {
    const fd = owner.descriptor();
    const found = fd < 0 ? 0 : pollNow(fd, owner.wanted());
    if (found !== 0) serve(found);
    else renew();
  });
  const tick = setInterval(() => serve(0), TICK_MS);
  watch.start();
  renew();
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
