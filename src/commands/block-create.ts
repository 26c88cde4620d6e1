/** Commands that make images and change their options: each starts a job. */

import type { DriverOptions } from '../block/contract/image.ts';
import { findNode } from '../block/graph/find-node.ts';
import { BlockError } from '../errors/error.ts';
import { amendImageJob } from '../jobs/amend.ts';
import { createImageJob } from '../jobs/create.ts';
import { type JobDriver, type JobTable, withJobLock } from '../jobs/job-common.ts';
import { createJob, startJob } from '../jobs/job-monitor.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

/** Starts a job that is to be dismissed at the end, and waits until the command may be answered. */
async function start(jobs: JobTable, id: string, driver: JobDriver): Promise<void> {
  const job = withJobLock(jobs, (lock) => {
    const created = createJob(jobs, { id, driver, autoDismiss: false }, lock);
    startJob(created, lock);
    return created;
  });
  await job.whenDetached;
}

export const blockCreateCommands = {
  'blockdev-create': async ({ layer, jobs }, { 'job-id': id, options }) => {
    const creation = (await layer.driver(options.driver))?.creation;
    if (creation?.create === undefined) throw new BlockError('Driver does not support blockdev-create');
    await start(jobs, id, createImageJob(layer, creation.create, options as unknown as DriverOptions));
    return {};
  },

  'x-blockdev-amend': async ({ layer, jobs }, { 'job-id': id, 'node-name': name, options, force }) => {
    const node = findNode(layer, name, '');
    if (node.driver.name !== options.driver)
      throw new BlockError("x-blockdev-amend doesn't support changing the block driver");
    if (node.driver.amend === undefined) throw new BlockError('Driver does not support x-blockdev-amend');
    await start(jobs, id, amendImageJob(node, options as unknown as DriverOptions, force ?? false));
    return {};
  },
} satisfies Handlers<CommandContext, 'blockdev-create' | 'x-blockdev-amend'>;
