/**
 * ssh: a file on a server, over SFTP.
 *
 * Options (QMP reference, BlockdevOptionsSsh): server, path, user, host-key-check. Beyond the original's: known-hosts,
 * identity-file, timeout, retries, retry-delay. Requests are cut into pieces, many of which are under way at once over
 * several channels (file.ts, link.ts). Names are names.ts.
 * Protocol: draft-ietf-secsh-filexfer-02 with OpenSSH's extensions (PROTOCOL in its sources).
 */

import type { InetSocketAddress } from '../../../../schema/generated/types.ts';
import { fillVector, type IoVector, sliceVector } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import type { DriverOptions } from '../../../block/contract/image.ts';
import { Status } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError } from '../../../errors/error.ts';
import { PassingError } from '../../net/failures.ts';
import { retryPolicy } from '../../net/retry.ts';
import { sizedFileCreation } from '../protocol-create.ts';
import { openSshFile, type SshFile, type SshFileSettings } from './file.ts';
import type { HostKeyCheck } from './host-key.ts';
import { OpenFlag } from './link.ts';
import { exactName, localUser, parseName, sshNames } from './names.ts';

interface SshOptions {
  readonly server: InetSocketAddress;
  readonly path: string;
  readonly user?: string;
  readonly 'host-key-check'?: HostKeyCheck;
  readonly 'known-hosts'?: string;
  readonly 'identity-file'?: string;
  readonly timeout?: number;
}

type SshNode = BlockNode<SshFile>;

const DEFAULT_TIMEOUT_S = 30;

// ---- open ----------------------------------------------------------------------------------------------------

/** What neither the schema nor the tools have checked. */
function checkOptions(options: SshOptions): void {
  const { server, path, 'host-key-check': check } = options;
  const missing = (name: string): BlockError =>
    new BlockError(`Parameter '${name}' is missing`, { errno: E.EINVAL });
  if (typeof server !== 'object' || server.host === undefined) throw missing('server');
  if (path === undefined) throw missing('path');
  if (server.port === undefined) throw missing('server.port');
  if (check === undefined || check.mode !== 'hash') return;
  if (check.type === undefined) throw missing('host-key-check.type');
  if (check.hash === undefined) throw missing('host-key-check.hash');
}

function fileSettings(
  layer: BlockLayer,
  options: SshOptions,
  flags: number,
  warn: (text: string) => void = layer.report,
): SshFileSettings {
  checkOptions(options);
  const { host, port, ...more } = options.server;
  return {
    target: {
      server: { ...more, host, port },
      user: options.user ?? localUser(),
      check: options['host-key-check'] ?? { mode: 'known_hosts' },
      knownHosts: options['known-hosts'],
      identityFile: options['identity-file'],
      timeoutMs: (options.timeout || DEFAULT_TIMEOUT_S) * 1000,
    },
    path: options.path,
    flags,
    policy: retryPolicy(options as unknown as DriverOptions),
    warn,
  };
}

async function open(node: SshNode, context: OpenContext): Promise<SshFile> {
  const { layer } = node;
  const options = context.options as unknown as SshOptions;
  const openWith = (flags: number): Promise<SshFile> => {
    const warn = (text: string): void => layer.report(`warning: Node '${node.name}': ${text}\n`);
    return layer.whileOpening(openSshFile(fileSettings(layer, options, flags, warn), layer.endSignal));
  };
  if (node.readOnly) return openWith(OpenFlag.read);
  try {
    return await openWith(OpenFlag.read | OpenFlag.write);
  } catch (error) {
    const mayRead = context.autoReadOnly && error instanceof BlockError && error.errno === E.EACCES;
    if (!mayRead || error instanceof PassingError) throw error;
    node.readOnly = true;
    return openWith(OpenFlag.read);
  }
}

// ---- I/O -----------------------------------------------------------------------------------------------------

function preadv(node: SshNode, _guard: unknown, offset: number, bytes: number, vec: IoVector): Promise<void> {
  const inside = Math.min(bytes, Math.max(0, node.state.sizeBytes - offset));
  if (inside < bytes) fillVector(sliceVector(vec, inside, bytes - inside), 0);
  return inside === 0 ? Promise.resolve() : node.state.read(offset, sliceVector(vec, 0, inside));
}

async function truncate(
  node: SshNode,
  _guard: unknown,
  length: number,
  _exact: boolean,
  prealloc: string,
): Promise<void> {
  if (prealloc !== 'off')
    throw new BlockError(`Unsupported preallocation mode '${prealloc}'`, { errno: E.ENOTSUP });
  if (length !== node.state.sizeBytes) await node.state.truncate(length);
}

// ---- create --------------------------------------------------------------------------------------------------

async function create(layer: BlockLayer, location: SshOptions, size: number): Promise<void> {
  const flags = OpenFlag.read | OpenFlag.write | OpenFlag.create | OpenFlag.truncate;
  const file = await openSshFile(fileSettings(layer, location, flags), layer.endSignal);
  try {
    if (size > 0) await file.truncate(size);
  } finally {
    await file.close();
  }
}

// ---- the driver ----------------------------------------------------------------------------------------------

export const ssh: BlockDriver<SshFile> = {
  name: 'ssh',
  kind: 'protocol',
  growsWithZeroes: true,
  supportedWriteFlags: 0,
  supportedZeroFlags: 0,
  ...sshNames,
  strongOptions: ['host', 'port', 'path', 'user', 'host_key_check', 'server'],
  exactFilename: ({ settings }) => exactName(settings.options),
  creation: sizedFileCreation<SshOptions>(parseName, create),
  open,
  close: ({ state }) => state.close(),
  async reopenPrepare({ state }, { settings }) {
    if (!settings.readOnly && !settings.autoReadOnly && !state.writable)
      throw new BlockError("Can't reopen read-only SSH file as read/write", { errno: E.EACCES });
  },
  reopenCommit(node) {
    if (!node.state.writable) node.readOnly = true;
  },
  cancelInFlight: ({ state }) => state.cancel(),
  preadv,
  pwritev: (node, _guard, offset, bytes, vec) =>
    bytes === 0 ? Promise.resolve() : node.state.write(offset, vec),
  flush: ({ state }) => state.flush(),
  async blockStatus(node, _guard, _wantZero, offset, bytes) {
    return { bytes, flags: Status.data | Status.offsetValid, map: offset, file: node };
  },
  truncate,
  getLength: async ({ state }) => state.sizeBytes,
  getAllocatedFileSize: async () => -1,
};
