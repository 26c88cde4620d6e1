/**
 * Monitors on character devices (`--monitor`): the device's peer talks QMP; each new peer gets a new session.
 */

import type { Chardev } from '../src/chardev/chardev.ts';
import type { OpenSession, SessionHost } from './sessions.ts';

/** Output that may pile up before the session stops reading commands. */
const HIGH_WATER_BYTES = 64 * 1024;
/** How long a deleted monitor may take to answer what it was sent, were its peer not to read. */
const ANSWER_MS = 1000;

/**
 * Makes a monitor the user of a device. Throws when the device is in use. `onClosed`: the peer has left. The result takes
 * the monitor off the device again, when the command under way has been answered.
 */
export function attachMonitor(
  device: Chardev,
  host: SessionHost,
  pretty: boolean,
  onClosed: () => void = () => undefined,
): () => void {
  let detached = false;
  let session: OpenSession | null = null;
  let connected = false;
  let serving = false;
  const port = device.attach({
    opened: () => {
      connected = true;
      open();
    },
    ended: () => {
      if (session === null) port.finish();
      else session.endOfInput(() => port.finish());
    },
    closed: () => {
      connected = false;
      session?.disconnected();
      session = null;
      onClosed();
    },
    received: (data) => session?.receive(data),
    drained: () => session?.drained(),
  });
  port.setReading(false);

  host.whenServing(() => {
    serving = true;
    port.setReading(true);
    open();
  });

  return () => {
    detached = true;
    let left = false;
    const leave = (): void => {
      if (left) return;
      left = true;
      clearTimeout(limit);
      session?.disconnected();
      session = null;
      device.detach();
    };
    const limit = setTimeout(leave, ANSWER_MS).unref();
    // The session's own command may have asked for it: its answer goes first. Else the device is free at once.
    if (session === null) leave();
    else session.endOfInput(leave);
  };

  /** Opens a session for the peer. A peer that is there already is announced while attaching, before `port` is. */
  function open(): void {
    if (!connected || !serving || detached) return;
    port.setReading(true); // the last peer may have left while it was not being read
    session = host.open(
      {
        send: (text) => {
          port.write(Buffer.from(text, 'latin1'));
          return port.backlogBytes < HIGH_WATER_BYTES;
        },
        close: () => port.disconnect(),
        pause: () => port.setReading(false),
        resume: () => port.setReading(true),
      },
      pretty,
      `chardev ${device.id}`,
    );
  }
}
