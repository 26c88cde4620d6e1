/** The job of x-blockdev-amend: an image's options are changed by its driver. */

import type { BackendOwner } from '../block/contract/backend-io.ts';
import type { CreateOptionValues, DriverOptions } from '../block/contract/image.ts';
import { Perm } from '../block/contract/request.ts';
import { drained } from '../block/graph/drain.ts';
import type { BlockNode } from '../block/graph/node.ts';
import { wrapped } from '../block/io/callbacks.ts';
import type { JobDriver } from './job-common.ts';
import { addProgress, letCommandReturn, setRemainingProgress } from './job-driver.ts';

/** Keeps the node while the job runs; takes nothing from others. */
const AMEND_OWNER: BackendOwner = {
  describe: () => 'an unnamed block device',
  drainedBegin: () => undefined,
  drainedEnd: () => undefined,
};

/** Options of the schema in the dotted form of the tools: { encrypt: { state: 'active' } } is encrypt.state. */
export function dottedValues(options: DriverOptions, prefix = ''): CreateOptionValues {
  const values: Record<string, string> = {};
  for (const [name, value] of Object.entries(options)) {
    const key = `${prefix}${name}`;
    if (typeof value === 'object' && value !== null)
      Object.assign(values, dottedValues(value as DriverOptions, `${key}.`));
    else if (typeof value === 'boolean') values[key] = value ? 'on' : 'off';
    else values[key] = String(value);
  }
  return values;
}

/** Changes options of the image in `node`. `force`: also what may destroy data. No pause points. */
export function amendImageJob(node: BlockNode, options: DriverOptions, force: boolean): JobDriver {
  const { driver: _driver, ...rest } = options;
  return {
    type: 'amend',
    async run(job) {
      setRemainingProgress(job, 1);
      try {
        const backend = await node.layer.createBackend(node, { perm: 0, shared: Perm.all }, AMEND_OWNER);
        try {
          await drained(node, () =>
            wrapped.amend(node, dottedValues(rest), force, {
              update: () => undefined,
              checked: () => letCommandReturn(job),
            }),
          );
        } finally {
          await backend.close();
        }
      } finally {
        addProgress(job, 1);
      }
    },
  };
}
