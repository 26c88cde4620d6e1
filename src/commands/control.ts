/** Commands of schema/control.json: negotiation, version, list of commands, end of the daemon. */

import { cancelDerivations } from '../aio/host/long-derivation.ts';
import { limitPatience, type Patient } from '../block/patience.ts';
import { endAllJobs } from '../jobs/end-all.ts';
import type { JobTable } from '../jobs/job-common.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import { COMMAND_NAMES } from '../qmp/validate.ts';
import { VERSION_INFO } from '../qmp/version.ts';

/** The part of the command context that is needed here. */
export interface ControlContext {
  readonly exports: { closeAll(): Promise<void> };
  readonly jobs: JobTable;
  readonly layer: Patient;
  readonly requestShutdown: () => void;
}

export const controlCommands = {
  qmp_capabilities: (_context, args, session) => {
    session.negotiate(args.enable ?? []);
    return {};
  },

  'query-version': () => VERSION_INFO,

  // The original lists the newest registration first.
  'query-commands': () => COMMAND_NAMES.map((name) => ({ name })).reverse(),

  quit: async (context, _args, session) => {
    // Clients of the exports and the jobs are gone, and the monitors know it, when quit is answered.
    const endPatience = limitPatience(context.layer);
    try {
      await context.exports.closeAll();
      cancelDerivations();
      await endAllJobs(context.jobs);
    } finally {
      endPatience();
    }
    session.finish(() => context.requestShutdown());
    return {};
  },
} satisfies Handlers<ControlContext, 'qmp_capabilities' | 'query-version' | 'query-commands' | 'quit'>;
