/**
 * QMP commands over character devices.
 */

import { isRingbuf, type RingbufBackend } from '../chardev/ringbuf.ts';
import { CHARDEV_BACKEND_KINDS, type ChardevTable } from '../chardev/table.ts';
import { BlockError } from '../errors/error.ts';
import { decodeBase64 } from '../objects/base64.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

function findRingbuf(
  chardevs: ChardevTable,
  id: string,
): { readonly ring: RingbufBackend; write(data: Buffer): void } {
  const device = chardevs.find(id);
  if (device === null) throw new BlockError(`Device '${id}' not found`);
  const ring = device.backend;
  if (!isRingbuf(ring)) throw new BlockError(`${id} is not a ringbuf device`);
  return { ring, write: (data) => device.write(data) };
}

/** Bytes as text: what is not UTF-8 is replaced, and text ends at the first zero byte, as in the original. */
function textOf(data: Buffer): string {
  const end = data.indexOf(0);
  return data.toString('utf8', 0, end < 0 ? data.length : end);
}

/** Puts the name of the device before what went wrong when its backend was opened. */
async function namingDevice<T>(id: string, opening: Promise<T>): Promise<T> {
  try {
    return await opening;
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new BlockError(`Failed to add chardev '${id}': ${error.message}`, {
      errno: error.errno,
      cause: error,
    });
  }
}

export const charCommands = {
  'query-chardev': ({ chardevs }) =>
    chardevs.list().map((device) => ({
      label: device.id,
      filename: device.backend.filename(),
      'frontend-open': device.hasOpenUser,
    })),

  'query-chardev-backends': () => CHARDEV_BACKEND_KINDS.map((name) => ({ name })),

  'chardev-add': ({ chardevs }, { id, backend }) => {
    if (chardevs.has(id)) throw new BlockError(`Chardev with id '${id}' already exists`);
    return namingDevice(id, chardevs.add(id, backend));
  },

  'chardev-change': ({ chardevs }, { id, backend }) => {
    chardevs.checkChange(id);
    return namingDevice(id, chardevs.change(id, backend));
  },

  'chardev-remove': ({ chardevs }, { id }) => {
    chardevs.remove(id);
    return {};
  },

  'chardev-send-break': ({ chardevs }, { id }) => {
    const device = chardevs.find(id);
    if (device === null) throw new BlockError(`Chardev '${id}' not found`);
    // Serial lines know breaks; the others take them in silence, as in the original.
    device.backend.sendBreak?.();
    return {};
  },

  'ringbuf-write': ({ chardevs }, { device, data, format = 'utf8' }) => {
    const { write } = findRingbuf(chardevs, device);
    write(format === 'base64' ? decodeBase64(data) : Buffer.from(data, 'utf8'));
    return {};
  },

  'ringbuf-read': ({ chardevs }, { device, size, format = 'utf8' }) => {
    const { ring } = findRingbuf(chardevs, device);
    if (size <= 0) throw new BlockError('size must be greater than zero');
    const data = ring.read(size);
    return format === 'base64' ? data.toString('base64') : textOf(data);
  },
} satisfies Handlers<
  CommandContext,
  | 'query-chardev'
  | 'query-chardev-backends'
  | 'chardev-add'
  | 'chardev-change'
  | 'chardev-remove'
  | 'chardev-send-break'
  | 'ringbuf-write'
  | 'ringbuf-read'
>;
