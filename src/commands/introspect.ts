/** The command of schema/introspect.json. */

import type { Handlers } from '../qmp/dispatch.ts';

export const introspectCommands = {
  // Loaded on first use: most sessions never ask, and the table would slow the start of the daemon.
  'query-qmp-schema': async () => (await import('../../schema/generated/introspection.ts')).INTROSPECTION,
} satisfies Handlers<unknown, 'query-qmp-schema'>;
