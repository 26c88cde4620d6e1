/**
 * Monitors on character devices (`--monitor`): the device's peer talks QMP; each new peer gets a new session.
 */

import type { Chardev } from '../src/chardev/chardev.ts';
import type { OpenSession, SessionHost } from './sessions.ts';

/** Output that may pile up before the session stops reading commands. */
const HIGH_WATER_BYTES = 64 * 1024;

/** Makes a monitor the user of a device. Throws when the device is in use. */
export function attachMonitor(device: Chardev, host: SessionHost, pretty: boolean): void {
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

  /** Opens a session for the peer. A peer that is there already is announced while attaching, before `port` is. */
  function open(): void {
    if (!connected || !serving) return;
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
