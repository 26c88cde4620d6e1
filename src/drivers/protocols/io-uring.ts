/**
 * io_uring: a file or block device of the host through our io_uring engine, under the name that libblkio gave it.
 *
 * Option (QMP reference, BlockdevOptionsIoUring): filename. It is file or host_device, whichever the name leads to, with
 * aio=io_uring.
 */

import { stat } from 'node:fs/promises';
import { file, hostDevice } from './file/file.ts';
import { existingCreation } from './protocol-create.ts';

async function isDevice(filename: string): Promise<boolean> {
  try {
    const found = await stat(filename);
    return found.isBlockDevice() || found.isCharacterDevice();
  } catch {
    return false; // Opening says why.
  }
}

const { namePrefixes, parseName, nameOptions, modernOptions, exactFilename, ...shared } = file;

export const ioUring: typeof file = {
  ...shared,
  name: 'io_uring',
  growsWithZeroes: false,
  creation: existingCreation('io_uring'),
  async open(node, context) {
    const options = { ...context.options, aio: 'io_uring' };
    const driver = (await isDevice(String(context.options.filename))) ? hostDevice : file;
    return driver.open(node, { ...context, options });
  },
};
