/**
 * From options to a connected Gluster volume and an open file on it. All of it by calls that wait on libuv's thread pool.
 *
 * Source of the facts: glfs.h; QMP reference (BlockdevOptionsGluster); error texts from qemu-img 7.2.
 */

import { callPooledErrno } from '../../../aio/host/pooled-calls.ts';
import { type Libgfapi, libgfapi } from '../../../aio/libraries/libgfapi.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError } from '../../../errors/error.ts';
import { createSlots } from '../../net/slots.ts';
import { within } from '../../net/within.ts';
import { NAME_OPTION } from './names.ts';

interface GlusterServer {
  readonly type?: string;
  readonly host?: string;
  readonly port?: string;
  readonly path?: string;
  readonly [member: string]: unknown;
}

export interface GlusterOptions {
  readonly volume?: string;
  readonly path?: string;
  readonly server?: readonly GlusterServer[];
  readonly debug?: number | string;
  readonly logfile?: string;
  readonly [NAME_OPTION]?: string;
}

export interface GlusterVolume {
  readonly library: Libgfapi;
  readonly address: number;
  /**
   * Ends the connection, which takes the library up to 10 s: nobody waits for it, and at the end of the layer, which is
   * that of the process, it is left to the kernel.
   */
  end(): void;
}

export type FileMode = 'read' | 'write' | 'create';

const DEFAULT_DEBUG = 4;
const MAX_DEBUG = 9;
const STDERR_LOG = '-';
const O_RDWR = 2;
const O_CREAT = 0o100;
const O_TRUNC = 0o1000;
const O_DIRECT = process.arch === 'arm64' ? 0o200000 : 0o40000;
const NEW_FILE_MODE = 0o600;
/** Before servers that do not answer an opening are given up. */
const OPEN_TIMEOUT_MS = 60_000;
const USAGE =
  'Usage: -drive driver=qcow2,file.driver=gluster,file.volume=testvol,file.path=/path/a.qcow2[,file.debug=9]' +
  '[,file.logfile=/path/filename.log],file.server.0.type=inet,file.server.0.host=1.2.3.4,file.server.0.port=24007,' +
  'file.server.1.transport=unix,file.server.1.path=/var/run/glusterd.socket ...';

function invalid(message: string, hint = ''): BlockError {
  return new BlockError(message, { errno: E.EINVAL, hint: hint + USAGE });
}

/** Checks what neither the schema nor the tools have; the servers with their kinds by the names of today. */
function checkServers({ server: given, volume, path }: GlusterOptions): readonly GlusterServer[] {
  // Options with dots make an object with numbers for names of what is no proper list of servers.
  const server = Object.values(given ?? []);
  if (server.length === 0) throw invalid("Parameter 'server' is missing");
  for (const [name, value] of Object.entries({ volume, path }))
    if (value === undefined) throw invalid(`Parameter '${name}' is missing`);
  return server.map((one, index) => {
    const need = (name: string): void => {
      if (one[name] === undefined)
        throw invalid(`Parameter '${name}' is missing`, `hint: check in 'server' array index '${index}'\n`);
    };
    need('type');
    const type = one.type === 'tcp' ? 'inet' : one.type;
    if (type === 'unix') need('path');
    else if (type === 'inet') {
      need('host');
      need('port');
      if (one.to !== undefined) throw invalid("Parameter 'to' not supported");
      if (one.ipv4 !== undefined || one.ipv6 !== undefined)
        throw invalid("Parameters 'ipv4/ipv6' not supported");
    } else
      throw invalid(
        "Parameter 'type' may be 'inet' or 'unix'",
        `hint: check in 'server' array index '${index}'\n`,
      );
    return { ...one, type };
  });
}

function addServer(library: Libgfapi, volume: number, server: GlusterServer): void {
  const isUnix = server.type === 'unix';
  const port = isUnix ? 0 : Number(server.port);
  if (!Number.isInteger(port) || port < 0 || port > 65_535)
    throw invalid(`'${server.port}' is not a valid port number`);
  const transport = isUnix ? 'unix' : 'tcp';
  if (library.addServer(volume, transport, isUnix ? server.path : server.host, port) < 0)
    throw new BlockError('Gluster server cannot be used', { errno: E.EINVAL });
}

function hintOf(servers: readonly GlusterServer[]): string {
  const places = servers.map(({ type, host, port, path }) =>
    type === 'unix' ? `hint: failed on socket ${path} ` : `hint: failed on host ${host} and port ${port} `,
  );
  return `${places.join('')}Please refer to gluster logs for more info`;
}

/** Each end of a connection holds one of the few threads for up to 10 s: they go one after another. */
const ends = createSlots(1);

/** Connects to the volume. */
export async function openVolume(options: GlusterOptions, signal: AbortSignal): Promise<GlusterVolume> {
  const servers = checkServers(options);
  const level = Number(options.debug ?? DEFAULT_DEBUG);
  if (!Number.isInteger(level)) throw invalid("Parameter 'debug' expects a number");
  for (const text of [options.volume, options.path])
    if (text?.includes('\0')) throw new BlockError('Invalid name of a file', { errno: E.EINVAL });
  const library = libgfapi();
  const address = Number(library.create(options.volume!));
  if (address === 0) throw new BlockError('Gluster volume cannot be used', { errno: E.ENOMEM });
  const end = (): void => {
    if (!signal.aborted) void ends.run(() => callPooledErrno(library.pooled.end, false, address));
  };
  for (const server of servers) addServer(library, address, server);
  const file = options.logfile ?? STDERR_LOG;
  if (library.setLogging(address, file, Math.max(0, Math.min(level, MAX_DEBUG))) < 0)
    throw new BlockError(`Gluster cannot log to '${file}'`, { errno: E.EINVAL });
  const connecting = callPooledErrno(library.pooled.init, false, address);
  let result: number;
  try {
    result = await within(connecting, OPEN_TIMEOUT_MS, signal);
  } catch (error) {
    void connecting.then(end);
    throw error;
  }
  if (result >= 0) return { library, address, end };
  end();
  const place = `volume ${options.volume}, path ${options.path}`;
  throw new BlockError(`Gluster connection for ${place} failed to connect`, {
    errno: -result,
    hint: hintOf(servers),
  });
}

/** Opens the file, or makes it; its handle. */
export async function openFile(
  { library, address }: GlusterVolume,
  options: GlusterOptions,
  mode: FileMode,
  direct: boolean,
  signal: AbortSignal,
): Promise<number> {
  const { pointers } = library;
  const access = mode === 'read' ? 0 : O_RDWR;
  const flags = access | (direct ? O_DIRECT : 0);
  const opening =
    mode === 'create'
      ? callPooledErrno(
          pointers.create,
          true,
          address,
          options.path,
          flags | O_CREAT | O_TRUNC,
          NEW_FILE_MODE,
        )
      : callPooledErrno(pointers.open, true, address, options.path, flags);
  const handle = await within(opening, OPEN_TIMEOUT_MS, signal);
  if (handle >= 0) return handle;
  const name = options[NAME_OPTION];
  throw errnoError(name === undefined ? 'Could not open image' : `Could not open '${name}'`, -handle);
}

/** Large enough for struct stat of any 64-bit Linux. */
export const STAT_BYTES = 256;
const SIZE_AT = 48;
const BLOCKS_AT = 64;
const BLOCK_BYTES = 512;

/** Size and bytes in use of a file, by struct stat of 64-bit Linux. */
export function readStat(stat: Buffer): { readonly size: number; readonly used: number } {
  return {
    size: Number(stat.readBigUInt64LE(SIZE_AT)),
    used: Number(stat.readBigUInt64LE(BLOCKS_AT)) * BLOCK_BYTES,
  };
}
