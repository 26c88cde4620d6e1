/** Commands that change nodes and the graph while they are in use. */

import type { DriverOptions } from '../block/driver.ts';
import { reopenNodes } from '../block/reopen.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

export const blockGraphCommands = {
  'blockdev-reopen': async ({ layer }, { options }) => {
    await reopenNodes(layer, options as unknown as readonly DriverOptions[]);
    return {};
  },
} satisfies Pick<Handlers<CommandContext>, 'blockdev-reopen'>;
