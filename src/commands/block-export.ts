/**
 * QMP commands over exports and the NBD server.
 */

import { flattenAddress } from '../aio/sockets.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

type Names =
  | 'nbd-server-start'
  | 'nbd-server-add'
  | 'nbd-server-remove'
  | 'nbd-server-stop'
  | 'block-export-add'
  | 'block-export-del'
  | 'query-block-exports'
  | 'x-query-block-exports';

export const blockExportCommands = {
  'nbd-server-start': async ({ exports }, { addr, ...options }) => {
    await exports.startNbdServer({ ...options, addr: flattenAddress(addr) }, 'qmp');
    return {};
  },

  'nbd-server-add': async ({ exports }, options) => {
    await exports.addNbd(options);
    return {};
  },

  // Exports made by nbd-server-add have their name as id.
  'nbd-server-remove': async ({ exports }, { name, mode }) => {
    await exports.remove(name, mode);
    return {};
  },

  'nbd-server-stop': async ({ exports }) => {
    await exports.stopNbdServer();
    return {};
  },

  'block-export-add': async ({ exports }, options) => {
    await exports.add(options);
    return {};
  },

  'block-export-del': async ({ exports }, { id, mode }) => {
    await exports.remove(id, mode);
    return {};
  },

  'query-block-exports': ({ exports }) => exports.query(),

  'x-query-block-exports': ({ exports }) => exports.queryDetails(),
} satisfies Handlers<CommandContext, Names>;
