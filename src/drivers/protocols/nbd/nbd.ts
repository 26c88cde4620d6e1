/**
 * nbd: an export of an NBD server.
 *
 * The protocol is src/nbd: protocol.ts its tables, client/session.ts a lasting client. Options (QMP reference,
 * BlockdevOptionsNbd): server, export, tls-creds, tls-hostname, x-dirty-bitmap, reconnect-delay, open-timeout.
 * Names are nbd/names.ts.
 *
 * The export's size and abilities are those of the first connection. A server without FUA gets a flush behind the
 * write. Block status is the context base:allocation, or the one x-dirty-bitmap names, where dirty reads as a hole.
 */

import type { SocketAddress } from '../../../../schema/generated/types.ts';
import { fillVector, type IoVector, isZeroVector, sliceVector } from '../../../aio/memory.ts';
import type { BlockDriver, OpenContext } from '../../../block/contract/driver.ts';
import { type BlockLimits, type BlockStatus, Req, Status } from '../../../block/contract/request.ts';
import type { BlockNode } from '../../../block/graph/node.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError, errnoOf, ioError } from '../../../errors/error.ts';
import { type ClientSession, openSession } from '../../../nbd/client/session.ts';
import { CLIENT_MAX_CONNECTIONS } from '../../../nbd/protocol/limits.ts';
import {
  BaseAllocation,
  Command,
  CommandFlag,
  ExportFlag,
  STRING_MAX_BYTES,
} from '../../../nbd/protocol/messages.ts';
import { existingCreation } from '../protocol-create.ts';
import { exactName, nbdNames } from './names.ts';

interface NbdOptions {
  readonly server: SocketAddress;
  readonly export?: string;
  readonly 'tls-creds'?: string;
  readonly 'tls-hostname'?: string;
  readonly 'x-dirty-bitmap'?: string;
  readonly 'reconnect-delay'?: number;
  readonly 'open-timeout'?: number;
}

interface NbdState {
  readonly session: ClientSession;
  readonly sizeBytes: number;
  /** ExportFlag bits. */
  readonly flags: number;
  /** Longest request without data, in bytes; the server may refuse what is longer than its payloads. */
  maxEffectBytes: number;
}

type NbdNode = BlockNode<NbdState>;

/** Requests without data: as much as 32 bits hold, in whole units of any block size. */
const MAX_EFFECT_BYTES = 2 ** 31 - 2 ** 25;
const MAX_EFFECT_BYTES_EXTENDED = 2 ** 40;
const SECTOR_BYTES = 512;

// ---- open, close ---------------------------------------------------------------------------------------------

async function open(node: NbdNode, context: OpenContext): Promise<NbdState> {
  const options = context.options as unknown as NbdOptions;
  const { server } = options;
  checkServer(server);
  const exportName = options.export ?? '';
  const bitmap = options['x-dirty-bitmap'];
  checkLength(exportName, 'export name');
  if (bitmap !== undefined) checkLength(bitmap, 'x-dirty-bitmap query');
  const { layer } = node;
  const credsId = options['tls-creds'];
  const hostname = options['tls-hostname'] ?? (server.type === 'inet' ? server.host : '');
  const tls = credsId === undefined ? null : { credentials: layer.tlsCreds(credsId), hostname };
  const opening = openSession({
    target: {
      engine: context.engine,
      address: server,
      allowInheritedFd: layer.allowInheritedFd,
      exportName,
      context: bitmap ?? 'base:allocation',
      tls,
    },
    reconnectDelayMs: (options['reconnect-delay'] ?? 0) * 1000,
    openTimeoutMs: (options['open-timeout'] ?? 0) * 1000,
    maxConnections: CLIENT_MAX_CONNECTIONS,
    signal: layer.endSignal,
    warn: (message) => layer.report(`warning: Node '${node.name}': ${message}\n`),
  });
  const session = await layer.whileOpening(opening);
  try {
    const { exp } = session;
    if (bitmap !== undefined && exp.contextId === null) throw errnoError('Could not open image', E.EINVAL);
    if ((exp.flags & ExportFlag.readOnly) !== 0 && !node.readOnly) {
      if (!context.autoReadOnly) throw errnoError('Could not open image', E.EACCES);
      node.readOnly = true;
    }
    const maxEffectBytes = exp.extended ? MAX_EFFECT_BYTES_EXTENDED : MAX_EFFECT_BYTES;
    return { session, sizeBytes: exp.sizeBytes, flags: exp.flags, maxEffectBytes };
  } catch (error) {
    await session.close();
    throw error;
  }
}

/** What the tools have not checked. */
function checkServer(server: SocketAddress): void {
  const members = SERVER_MEMBERS[server.type];
  if (server.type === undefined) throw new BlockError("Parameter 'type' is missing");
  if (members === undefined)
    throw new BlockError(`Parameter 'type' does not accept value '${String(server.type)}'`);
  const missing = members.required.find((name) => !Object.hasOwn(server, name));
  if (missing !== undefined) throw new BlockError(`Parameter '${missing}' is missing`);
  const known: readonly string[] = ['type', ...members.required, ...members.optional];
  const odd = Object.keys(server).find((name) => !known.includes(name));
  if (odd !== undefined) throw new BlockError(`Parameter '${odd}' is unexpected`);
}

const SERVER_MEMBERS: Readonly<
  Record<string, { readonly required: readonly string[]; readonly optional: readonly string[] }>
> = {
  inet: {
    required: ['host', 'port'],
    optional: [
      ...['numeric', 'to', 'ipv4', 'ipv6', 'mptcp'],
      ...['keep-alive', 'keep-alive-count', 'keep-alive-idle', 'keep-alive-interval'],
    ],
  },
  vsock: { required: ['cid', 'port'], optional: [] },
  unix: { required: ['path'], optional: ['abstract', 'tight'] },
  fd: { required: ['str'], optional: [] },
};

function checkLength(text: string, what: string): void {
  if (Buffer.byteLength(text) > STRING_MAX_BYTES)
    throw new BlockError(`${what} too long to send to server`, { errno: E.EINVAL });
}

function refreshLimits(node: NbdNode, limits: BlockLimits): void {
  const { session, sizeBytes } = node.state;
  const { minBlockBytes, preferredBlockBytes, maxPayloadBytes, contextId, extended } = session.exp;
  // A server that names no block size takes any; of one that cannot tell block status either, sectors are expected.
  const assumed = contextId === null && sizeBytes % SECTOR_BYTES === 0 ? SECTOR_BYTES : 1;
  limits.requestAlignment = minBlockBytes || assumed;
  limits.maxTransfer = maxPayloadBytes;
  limits.optTransfer = preferredBlockBytes > limits.requestAlignment ? preferredBlockBytes : 0;
  const effect = extended ? MAX_EFFECT_BYTES_EXTENDED : MAX_EFFECT_BYTES;
  limits.maxPdiscard = effect;
  limits.maxPwriteZeroes = effect;
}

// ---- I/O -----------------------------------------------------------------------------------------------------

/** Reads; the node's length is in whole sectors, and what is past the export's own end reads as zeroes. */
function preadv(
  node: NbdNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  const { session, sizeBytes } = node.state;
  if (bytes === 0) return DONE;
  if ((flags & Req.prefetch) !== 0 && (node.state.flags & ExportFlag.sendCache) !== 0)
    return session.request(Command.CACHE, 0, offset, bytes, null);
  if (offset + bytes <= sizeBytes) return session.request(Command.READ, 0, offset, bytes, vec);
  const inside = Math.max(0, sizeBytes - offset);
  fillVector(sliceVector(vec, inside, bytes - inside), 0);
  return inside === 0 ? DONE : session.request(Command.READ, 0, offset, inside, sliceVector(vec, 0, inside));
}

const DONE = Promise.resolve();

/** The request, with what FUA asks for: the server's own, or a flush behind it. */
function durable(
  { session, flags: abilities }: NbdState,
  flags: number,
  send: (commandFlags: number) => Promise<void>,
): Promise<void> {
  if ((flags & Req.fua) === 0) return send(0);
  if ((abilities & ExportFlag.sendFua) !== 0) return send(CommandFlag.fua);
  const written = send(0);
  if ((abilities & ExportFlag.sendFlush) === 0) return written;
  return written.then(() => session.request(Command.FLUSH, 0, 0, 0, null));
}

function pwritev(
  node: NbdNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  vec: IoVector,
  flags: number,
): Promise<void> {
  if (bytes === 0) return DONE;
  const { session, sizeBytes } = node.state;
  if (offset + bytes <= sizeBytes)
    return durable(node.state, flags, (fua) => session.request(Command.WRITE, fua, offset, bytes, vec));
  // Only what pads the request to whole blocks may be past the end, and that reads as zeroes.
  const inside = Math.max(0, sizeBytes - offset);
  if (inside === 0 || !isZeroVector(sliceVector(vec, inside, bytes - inside)))
    return Promise.reject(ioError(E.ENOSPC));
  return pwritev(node, _guard, offset, inside, sliceVector(vec, 0, inside), flags);
}

function pwriteZeroes(
  node: NbdNode,
  _guard: unknown,
  offset: number,
  bytes: number,
  flags: number,
): Promise<void> {
  const { flags: abilities, sizeBytes } = node.state;
  const length = Math.min(bytes, sizeBytes - offset);
  if (length <= 0) return DONE;
  if ((abilities & ExportFlag.sendWriteZeroes) === 0) return Promise.reject(ioError(E.ENOTSUP));
  let command = (flags & Req.mayUnmap) === 0 ? CommandFlag.noHole : 0;
  if ((flags & Req.noFallback) !== 0) {
    if ((abilities & ExportFlag.sendFastZero) === 0) return Promise.reject(ioError(E.ENOTSUP));
    command |= CommandFlag.fastZero;
  }
  return durable(node.state, flags, (fua) =>
    sendEffect(node.state, Command.WRITE_ZEROES, command | fua, offset, length),
  );
}

/**
 * A request without data. A server may refuse one that is longer than its longest payload, if it cannot do it at
 * once (proto.md, "Size constraints"): then, and from then on, it gets several.
 */
async function sendEffect(
  state: NbdState,
  type: number,
  flags: number,
  offset: number,
  length: number,
): Promise<void> {
  const { session } = state;
  const { maxPayloadBytes } = session.exp;
  for (let at = 0; at < length; ) {
    const bytes = Math.min(length - at, state.maxEffectBytes);
    try {
      await session.request(type, flags, offset + at, bytes, null);
    } catch (error) {
      const errno = errnoOf(error);
      const isTooLong = bytes > maxPayloadBytes && (errno === E.EINVAL || errno === E.EOVERFLOW);
      if (!isTooLong) throw error;
      state.maxEffectBytes = maxPayloadBytes;
      continue;
    }
    at += bytes;
  }
}

async function pdiscard(node: NbdNode, _guard: unknown, offset: number, bytes: number): Promise<void> {
  const { flags, sizeBytes } = node.state;
  const length = Math.min(bytes, sizeBytes - offset);
  if ((flags & ExportFlag.sendTrim) === 0 || length <= 0) return;
  await sendEffect(node.state, Command.TRIM, 0, offset, length);
}

async function flush({ state: { session, flags } }: NbdNode): Promise<void> {
  if ((flags & ExportFlag.sendFlush) !== 0) await session.request(Command.FLUSH, 0, 0, 0, null);
}

async function blockStatus(
  node: NbdNode,
  _guard: unknown,
  _wantZero: boolean,
  offset: number,
  bytes: number,
): Promise<BlockStatus> {
  const { session, sizeBytes } = node.state;
  const { contextId, extended, minBlockBytes } = session.exp;
  const extent = (length: number, flags: number): BlockStatus => ({
    bytes: length,
    // A range without any (of a bitmap, shown as data and holes) is nowhere.
    flags: flags === 0 ? 0 : flags | Status.offsetValid,
    map: offset,
    file: node,
  });
  // Up to the end of the node's last sector, which the export has no place for.
  if (offset >= sizeBytes) return { bytes, flags: Status.zero, map: 0, file: null };
  if (contextId === null) return extent(bytes, Status.data);
  const limit = extended ? MAX_EFFECT_BYTES_EXTENDED : MAX_EFFECT_BYTES;
  const length = Math.min(bytes, sizeBytes - offset, limit);
  const { bytes: told, flags } = await session.blockStatus(CommandFlag.reqOne, offset, length);
  const shown = Math.min(told, length);
  const odd = shown % (minBlockBytes || 1);
  if (odd === 0 || shown === bytes || offset + shown >= sizeBytes) return extent(shown, statusOf(flags));
  // The server does not keep to its own block size: of a block with more than one extent nothing is known but that it
  // can be read.
  return shown > odd
    ? extent(shown - odd, statusOf(flags))
    : extent(Math.min(minBlockBytes, length), Status.data);
}

function statusOf(flags: number): number {
  return (
    ((flags & BaseAllocation.hole) === 0 ? Status.data : 0) |
    ((flags & BaseAllocation.zero) === 0 ? 0 : Status.zero)
  );
}
async function truncate(node: NbdNode, _guard: unknown, length: number, exact: boolean): Promise<void> {
  const { sizeBytes } = node.state;
  if (exact && length !== sizeBytes) throw new BlockError('Cannot resize NBD nodes', { errno: E.ENOTSUP });
  if (length > sizeBytes) throw new BlockError('Cannot grow NBD nodes', { errno: E.EINVAL });
}

// ---- the driver ----------------------------------------------------------------------------------------------

export const nbd: BlockDriver<NbdState> = {
  name: 'nbd',
  kind: 'protocol',
  costlyStatus: true,
  supportedWriteFlags: Req.fua,
  supportedZeroFlags: Req.fua | Req.mayUnmap | Req.noFallback,
  ...nbdNames,
  strongOptions: ['export', 'server', 'tls-creds', 'tls-hostname'],
  open,
  close: ({ state }) => state.session.close(),
  async reopenPrepare({ state }, { settings }) {
    if (!settings.readOnly && !settings.autoReadOnly && (state.flags & ExportFlag.readOnly) !== 0)
      throw new BlockError("Can't reopen read-only NBD mount as read/write", { errno: E.EACCES });
  },
  reopenCommit(node) {
    if ((node.state.flags & ExportFlag.readOnly) !== 0) node.readOnly = true;
  },
  cancelInFlight: ({ state }) => state.session.cancelRequests(),
  refreshLimits,
  creation: existingCreation('nbd'),
  exactFilename: ({ settings }) => exactName(settings.options),
  preadv,
  pwritev,
  pwriteZeroes,
  pdiscard,
  flush,
  blockStatus,
  truncate,
  getLength: async ({ state }) => state.sizeBytes,
  // The protocol does not tell.
  getAllocatedFileSize: async () => -1,
};
