/**
 * From options to an open cluster, pool and image of Ceph, and back. All of it by calls that wait on libuv's thread pool.
 *
 * Source of the facts: librados and librbd documentation; error texts from qemu-img 7.2.
 */

import { addressOf } from '../../../aio/ffi.ts';
import { callPooled } from '../../../aio/host/pooled-calls.ts';
import { cellValue, pointerCell } from '../../../aio/libraries/host-library.ts';
import { ENCRYPTION_FORMATS, type Librbd, librbd } from '../../../aio/libraries/librbd.ts';
import type { BlockLayer } from '../../../block/layer.ts';
import { E } from '../../../errors/errno.ts';
import { BlockError, errnoError } from '../../../errors/error.ts';
import { createSlots } from '../../net/slots.ts';
import { PAIRS_OPTION } from './names.ts';

export interface RbdOptions {
  readonly pool: string;
  readonly namespace?: string;
  readonly image: string;
  readonly conf?: string;
  readonly snapshot?: string;
  readonly encrypt?: { readonly format: 'luks' | 'luks2'; readonly 'key-secret'?: string };
  readonly user?: string;
  readonly 'auth-client-required'?: readonly string[];
  readonly 'key-secret'?: string;
  readonly server?: readonly { readonly host: string; readonly port: string }[];
  readonly [PAIRS_OPTION]?: string;
}

export interface RbdPool {
  readonly library: Librbd;
  readonly ioctx: number;
  close(): Promise<void>;
}

/** A cluster that does not answer holds a thread of libuv's pool for so long, unless its configuration says otherwise. */
const CONNECT_TIMEOUT_S = 10;
const CEPH_CONNECT_TIMEOUT_S = 300;

/** Connections in the making: silent clusters leave threads of the pool to others. */
const connecting = createSlots(2);

/** Throws "MESSAGE: reason" when a library's result says so; the result otherwise. */
export function checked(result: number, message: string): number {
  if (result < 0) throw errnoError(message, -result);
  return result;
}

function configure(library: Librbd, cluster: number, layer: BlockLayer, options: RbdOptions): void {
  const set = (name: string, value: string): number => library.confSet(cluster, name, value);
  const key = options['key-secret'];
  if (key !== undefined) checked(set('key', layer.secret(key).toString('base64')), 'Could not set key');
  const auth = options['auth-client-required'];
  if (auth !== undefined)
    checked(set('auth_client_required', auth.join(';')), 'Could not set auth_client_required');
  if (options.server !== undefined) {
    const hosts = options.server.map(
      ({ host, port }) => `${host.includes(':') ? `[${host}]` : host}:${port}`,
    );
    checked(set('mon_host', hosts.join(';')), 'Could not set mon_host');
  }
  const pairs = JSON.parse(options[PAIRS_OPTION] ?? '[]') as readonly string[];
  for (let i = 0; i + 1 < pairs.length; i += 2)
    checked(set(pairs[i] as string, pairs[i + 1] as string), `invalid conf option ${pairs[i]}`);
  const text = Buffer.allocUnsafeSlow(32).fill(0);
  const isDefault =
    library.confGet(cluster, 'client_mount_timeout', addressOf(text), text.length) >= 0 &&
    Number(text.toString('latin1').replace(/\0.*$/s, '')) === CEPH_CONNECT_TIMEOUT_S;
  if (isDefault) set('client_mount_timeout', String(CONNECT_TIMEOUT_S));
}

/** Connects to the cluster and opens the pool. `cached`: the library may hold written data back until a flush. */
export async function openPool(layer: BlockLayer, options: RbdOptions, cached: boolean): Promise<RbdPool> {
  const library = librbd();
  const { pooled } = library;
  const cell = pointerCell();
  checked(library.radosCreate(addressOf(cell), options.user ?? null), 'error initializing');
  const cluster = cellValue(cell);
  try {
    const { conf } = options;
    const read = await callPooled(pooled.confReadFile, cluster, conf ?? null);
    // Without a file of its own a cluster may be given by the other options.
    if (conf !== undefined) checked(read, `error reading conf file ${conf}`);
    configure(library, cluster, layer, options);
    library.confSet(cluster, 'rbd_cache', cached ? 'true' : 'false');
    checked(await connecting.run(() => callPooled(pooled.connect, cluster)), 'error connecting');
    const made = await callPooled(pooled.ioctxCreate, cluster, options.pool, addressOf(cell));
    checked(made, `error opening pool ${options.pool}`);
  } catch (error) {
    await callPooled(pooled.shutdown, cluster);
    throw error;
  }
  const ioctx = cellValue(cell);
  const close = async (): Promise<void> => {
    library.ioctxDestroy(ioctx);
    await callPooled(pooled.shutdown, cluster);
  };
  const { namespace } = options;
  if (namespace) {
    try {
      await checkNamespace(library, ioctx, namespace);
    } catch (error) {
      await close();
      throw error;
    }
    library.setNamespace(ioctx, namespace);
  }
  return { library, ioctx, close };
}

async function checkNamespace(library: Librbd, ioctx: number, name: string): Promise<void> {
  // A bool.
  const cell = pointerCell();
  const asked = await callPooled(library.pooled.namespaceExists, ioctx, name, addressOf(cell));
  checked(asked, 'Error checking namespace');
  if (cell[0] === 0) throw new BlockError(`namespace '${name}' does not exist`, { errno: E.ENOENT });
}

export interface RbdImage {
  readonly handle: number;
  /** Bytes that the header of an encryption takes of the image's size: resizing counts them, the size does not. */
  readonly headerBytes: number;
}

/** How calls on threads are waited for: RbdRequests.waitFor, once there is an open image. */
type WaitFor = (call: Promise<number>, ...memory: readonly Buffer[]) => Promise<number>;

/** Size of the image as users see it; somebody else may have changed it. */
export async function sizeOf(
  library: Librbd,
  image: number,
  waitFor: WaitFor = (call) => call,
): Promise<number> {
  const cell = pointerCell();
  const got = await waitFor(callPooled(library.pooled.getSize, image, addressOf(cell)), cell);
  checked(got, 'error getting image size');
  return cellValue(cell);
}

/** Opens the image, and what is encrypted in it. */
export async function openImage(
  layer: BlockLayer,
  { library, ioctx }: RbdPool,
  options: RbdOptions,
  mayReadOnly: boolean,
): Promise<RbdImage> {
  const { pooled } = library;
  const cell = pointerCell();
  const { image: name, snapshot = null, encrypt } = options;
  let result = await callPooled(pooled.open, ioctx, name, addressOf(cell), snapshot);
  if (mayReadOnly && (result === -E.EPERM || result === -E.EACCES || result === -E.EROFS))
    result = await callPooled(pooled.openReadOnly, ioctx, name, addressOf(cell), snapshot);
  checked(result, `error reading header from ${name}`);
  const image = cellValue(cell);
  if (encrypt === undefined) return { handle: image, headerBytes: 0 };
  try {
    const whole = await sizeOf(library, image);
    await loadEncryption(layer, library, image, encrypt);
    return { handle: image, headerBytes: whole - (await sizeOf(library, image)) };
  } catch (error) {
    await callPooled(pooled.close, image);
    throw error;
  }
}

async function loadEncryption(
  layer: BlockLayer,
  library: Librbd,
  image: number,
  encrypt: NonNullable<RbdOptions['encrypt']>,
): Promise<void> {
  const secret = encrypt['key-secret'];
  if (secret === undefined)
    throw new BlockError("Parameter 'encrypt.key-secret' is missing", { errno: E.EINVAL });
  const { options, wipe } = encryptionOptions(layer.secret(secret), null);
  const format = ENCRYPTION_FORMATS[encrypt.format];
  const result = await callPooled(
    library.pooled.encryptionLoad,
    image,
    format,
    addressOf(options),
    options.length,
  );
  wipe();
  checked(result, 'Failed to load encryption on image');
}

/** rbd_encryption_luks[12]_format_options_t: algorithm i32, passphrase and its length; loading leaves the first out. */
export function encryptionOptions(
  passphrase: Buffer,
  algorithm: number | null,
): { readonly options: Buffer; wipe(): void } {
  const text = Buffer.allocUnsafeSlow(passphrase.length + 1).fill(0);
  passphrase.copy(text);
  const options = Buffer.allocUnsafeSlow(24).fill(0);
  options.writeInt32LE(algorithm ?? 0, 0);
  options.writeBigUInt64LE(BigInt(addressOf(text)), 8);
  options.writeBigUInt64LE(BigInt(passphrase.length), 16);
  return { options, wipe: () => text.fill(0) };
}
