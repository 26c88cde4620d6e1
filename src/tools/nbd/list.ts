/** `qblock-nbd --list`: what another server offers. */

import type { SocketAddress } from '../../../schema/generated/types.ts';
import { connectTo } from '../../aio/sockets.ts';
import { BlockError, prefixed } from '../../errors/error.ts';
import { type ListedExport, listExports } from '../../nbd/client/list.ts';
import { ExportFlag } from '../../nbd/protocol/messages.ts';
import { ReceiveBuffer } from '../../nbd/protocol/receive-buffer.ts';
import type { ToolEnvironment } from '../common/environment.ts';
import type { NbdOptions } from './options.ts';

/** The flags and their names, in the order in which they are shown. */
const FLAGS: readonly (readonly [number, string])[] = [
  [ExportFlag.readOnly, 'readonly'],
  [ExportFlag.sendFlush, 'flush'],
  [ExportFlag.sendFua, 'fua'],
  [ExportFlag.rotational, 'rotational'],
  [ExportFlag.sendTrim, 'trim'],
  [ExportFlag.sendWriteZeroes, 'zeroes'],
  [ExportFlag.sendDf, 'df'],
  [ExportFlag.canMultiConn, 'multi'],
  [ExportFlag.sendResize, 'resize'],
  [ExportFlag.sendCache, 'cache'],
  [ExportFlag.sendFastZero, 'fast-zero'],
];

export async function list(env: ToolEnvironment, options: NbdOptions, address: SocketAddress): Promise<void> {
  const { output, layer } = env;
  const where =
    address.type === 'unix' ? address.path : address.type === 'inet' ? `${address.host}:${address.port}` : '';
  let socket: Awaited<ReturnType<typeof connectTo>>;
  try {
    socket = await connectTo(address, { allowInheritedFd: true, pauseOnConnect: true });
  } catch (error) {
    // The text is the same for all that may be wrong with an address.
    throw error instanceof BlockError && error.message.startsWith('Failed to connect')
      ? error
      : prefixed(`Failed to connect to '${where}': `, error);
  }
  socket.on('error', () => socket.destroy());
  const stream = layer.engine.adoptSocket(socket);
  const startTls =
    options.tlsCreds === null
      ? null
      : async (below: typeof stream, received: Buffer) => {
          const { startTlsClient } = await import('../../nbd/client/tls.ts');
          const host = options.tlsHostname ?? (address.type === 'inet' ? address.host : '');
          return startTlsClient(below, received, layer.tlsCreds(options.tlsCreds!), host);
        };
  try {
    const exports = await listExports(stream, new ReceiveBuffer(), startTls);
    output.print(`exports available: ${exports.length}\n`);
    for (const exp of exports) output.print(describe(exp));
  } finally {
    stream.close();
  }
}

function describe({ name, description, sizeBytes, flags, blockSizes, contexts }: ListedExport): string {
  const lines = [` export: '${name}'`];
  if (description !== '') lines.push(`  description: ${description}`);
  if ((flags & ExportFlag.hasFlags) !== 0) {
    const names = FLAGS.filter(([bit]) => (flags & bit) !== 0).map(([, flag]) => `${flag} `);
    lines.push(`  size:  ${sizeBytes}`, `  flags: 0x${flags.toString(16)} ( ${names.join('')})`);
  }
  if (blockSizes !== null) {
    const { min, preferred, max } = blockSizes;
    lines.push(`  min block: ${min}`, `  opt block: ${preferred}`, `  max block: ${max}`);
  }
  if (contexts !== null && contexts.length > 0) {
    lines.push(
      `  available meta contexts: ${contexts.length}`,
      ...contexts.map((context) => `   ${context}`),
    );
  }
  return `${lines.join('\n')}\n`;
}
