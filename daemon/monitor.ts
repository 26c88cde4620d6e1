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
  const open = (): void => {
    if (!connected || !serving) return;
    const transport = {
      send: (text: string): boolean => {
        device.write(Buffer.from(text, 'latin1'));
        return device.backlogBytes < HIGH_WATER_BYTES;
      },
      close: () => device.disconnect(),
      pause: () => device.setReading(false),
      resume: () => device.setReading(true),
    };
    device.setReading(true); // the last peer may have left while it was not being read
    session = host.open(transport, pretty);
  };
  device.setReading(false);
  device.attach({
    opened: () => {
      connected = true;
      open();
    },
    ended: () => {
      if (session === null) device.finish();
      else session.endOfInput(() => device.finish());
    },
    closed: () => {
      connected = false;
      session?.disconnected();
      session = null;
    },
    received: (data) => session?.receive(data),
    drained: () => session?.drained(),
  });
  host.whenServing(() => {
    serving = true;
    device.setReading(true);
    open();
  });
}
