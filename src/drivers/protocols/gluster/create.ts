/** Files on Gluster volumes are made, and changed in length, here. Error texts from qemu-img 7.2. */

import { callPooledErrno } from '../../../aio/host/pooled-calls.ts';
import { type ImageCreation, sizeOption } from '../../../block/contract/image.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, ioError } from '../../../errors/error.ts';
import { parseName } from './names.ts';
import { resizeFile } from './resize.ts';
import { type GlusterOptions, openFile, openVolume } from './volume.ts';

const MODES: readonly string[] = ['off', 'metadata', 'falloc', 'full'];

async function create(
  layer: BlockLayer,
  location: GlusterOptions,
  size: number,
  prealloc: string,
): Promise<void> {
  const volume = await openVolume(location, layer.endSignal);
  try {
    const handle = await openFile(volume, location, 'create', false, layer.endSignal);
    const { library } = volume;
    try {
      const call = async (...[fn, ...args]: Parameters<Parameters<typeof resizeFile>[1]>) => {
        const result = await callPooledErrno(fn, false, handle, ...args);
        if (result < 0) throw ioError(-result);
      };
      await resizeFile(library, call, 0, size, prealloc);
    } finally {
      await callPooledErrno(library.pooled.close, false, handle);
    }
  } finally {
    volume.end();
  }
}

export const creation: ImageCreation = {
  create: (layer, { location, size, preallocation }) =>
    create(layer, location as GlusterOptions, Number(size), String(preallocation ?? 'off')),
  options: [
    { name: 'debug', type: 'number', help: 'Gluster log level, valid range is 0-9' },
    { name: 'logfile', type: 'string', help: 'Logfile path of libgfapi' },
    { name: 'preallocation', type: 'string', help: 'Preallocation mode (allowed values: off, falloc, full)' },
    { name: 'size', type: 'size', help: 'Virtual disk size' },
  ],
  async createFile(layer, filename, values) {
    const { debug, logfile, preallocation = 'off' } = values;
    if (!MODES.includes(preallocation))
      throw new BlockError(`invalid parameter value: ${preallocation}`, { errno: E.EINVAL });
    const location = {
      ...parseName(filename),
      ...(debug !== undefined && { debug }),
      ...(logfile !== undefined && { logfile }),
    };
    await create(layer, location as GlusterOptions, sizeOption(values), preallocation);
  },
};
