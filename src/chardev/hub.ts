/**
 * The hub: several devices as one. What the user writes goes to all of them, what any of them receives goes to the user.
 *
 * The user has a peer as long as one of the devices has. A device whose peer sends no more is ended for itself; the
 * user hears of it when it was the last.
 */

import { BlockError } from '../errors/error.ts';
import { type BackendEvents, type ChardevBackend, type ChardevPort, ignore } from './backend.ts';
import type { Chardev } from './chardev.ts';
import { isMux } from './mux.ts';

const MAX_DEVICES = 4;

interface Spoke {
  readonly device: Chardev;
  readonly port: ChardevPort;
  isOpen: boolean;
}

export interface HubBackend extends ChardevBackend {
  readonly kind: 'hub';
}

/** Checks what a hub is made of. Throws before any of the devices is taken. */
function checkDevices(devices: readonly Chardev[]): void {
  if (devices.length === 0) throw new BlockError("hub: 'chardevs' list is not defined");
  if (devices.length > MAX_DEVICES)
    throw new BlockError(`hub: too many uses of chardevs (maximum is ${MAX_DEVICES})`);
  devices.forEach((device, index) => {
    const isTaken = device.inUse || devices.indexOf(device) !== index;
    if (isTaken) throw new BlockError(`hub: device '${device.id}' is in use`);
    if (isMux(device.backend) || device.backend.kind === 'hub')
      throw new BlockError(
        `hub: multiplexers and hub devices can't be stacked, check chardev '${device.id}'`,
      );
  });
}

/** Makes the devices into one; they are in use until the hub is closed. */
export function openHub(devices: readonly Chardev[]): HubBackend {
  checkDevices(devices);
  let events: BackendEvents | null = null;
  let reading = true;
  const spokes: Spoke[] = [];
  const openSpokes = (): Spoke[] => spokes.filter(({ isOpen }) => isOpen);
  const applyReading = (): void => {
    for (const { port } of spokes) port.setReading(reading && events !== null);
  };
  /** A device may have a peer while it is attached, before it is one of the spokes. */
  const early = new Set<Chardev>();
  for (const device of devices) {
    const own = (): Spoke | undefined => spokes.find((spoke) => spoke.device === device);
    const port = device.attach(
      {
        opened: () => {
          const spoke = own();
          if (spoke === undefined) {
            early.add(device);
            return;
          }
          const isFirst = openSpokes().length === 0;
          spoke.isOpen = true;
          if (isFirst) events?.opened();
        },
        ended: () => {
          if (openSpokes().length > 1) own()?.port.finish();
          else events?.ended();
        },
        closed: () => {
          const spoke = own();
          if (spoke === undefined || !spoke.isOpen) return;
          spoke.isOpen = false;
          if (openSpokes().length === 0) events?.closed();
        },
        received: (data) => events?.received(data),
        drained: () => events?.drained(),
      },
      () => events !== null,
    );
    spokes.push({ device, port, isOpen: early.has(device) });
  }
  applyReading();
  return {
    kind: 'hub',
    typeName: 'chardev-hub',
    accessors: {},
    filename: () => 'hub',
    start: (newEvents) => {
      events = newEvents;
      if (openSpokes().length > 0) events.opened();
      applyReading();
    },
    stop: () => {
      events = null;
      applyReading();
    },
    write: (data) => {
      for (const { port } of openSpokes()) port.write(data);
    },
    // The slowest counts: who writes waits for it.
    backlogBytes: () => Math.max(0, ...openSpokes().map(({ port }) => port.backlogBytes)),
    setReading: (wanted) => {
      reading = wanted;
      applyReading();
    },
    disconnect: () => {
      for (const { port } of openSpokes()) port.disconnect();
    },
    finish: () => {
      for (const { port } of openSpokes()) port.finish();
    },
    close: () => {
      events = null;
      for (const { device } of spokes) device.detach();
      spokes.splice(0).forEach(ignore);
    },
  };
}
