/** The job of blockdev-create: an image is written by its driver. */

import type { DriverOptions, ImageCreation } from '../block/contract/image.ts';
import type { BlockLayer } from '../block/layer.ts';
import type { JobDriver } from './job-common.ts';
import { addProgress, isCancelRequested, letCommandReturn, setRemainingProgress } from './job-driver.ts';

/** Creates an image with `options`, which are validated. The job has one unit of work and no pause points. */
export function createImageJob(
  layer: BlockLayer,
  create: NonNullable<ImageCreation['create']>,
  options: DriverOptions,
): JobDriver {
  return {
    type: 'create',
    async run(job) {
      setRemainingProgress(job, 1);
      try {
        await create(layer, options, {
          update: () => undefined,
          checked: () => letCommandReturn(job),
          isCancelled: () => isCancelRequested(job),
        });
      } finally {
        addProgress(job, 1);
      }
    },
  };
}
