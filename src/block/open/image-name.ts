/**
 * Image names: what a file name on a command line or in an image's header stands for, and which format is inside.
 *
 * A name is a path, or has a prefix: `json:{...}` gives a node's options, `file:PATH` a path, and drivers may have
 * prefixes of their own. Whether a plain path is
 * a device of the host is found out by looking. Opening is open.ts.
 */

import { statSync } from 'node:fs';
import path from 'node:path';
import { hostPath } from '../../aio/host/names.ts';
import { isOnOwnMount } from '../../aio/host/own-mounts.ts';
import { allocateIoMemory, vectorOf } from '../../aio/memory.ts';
import { BlockError } from '../../errors/error.ts';
import type { DriverOptions } from '../contract/image.ts';
import type { BlockNode } from '../graph/node.ts';
import { wrapped } from '../io/callbacks.ts';
import type { BlockLayer } from '../layer.ts';
import { exactFilename, nodeFilename } from './filename.ts';

/** Bytes at the start of an image that formats look at. */
const PROBE_BYTES = 2048;

/** "PREFIX:" in front of a name, unless a slash comes first. */
export function protocolPrefix(name: string): string | null {
  return /^([^/:]*):/.exec(name)?.[1] ?? null;
}

/** Options of the node that `name` stands for; a json: name may define a format node. */
export function protocolOptions(layer: BlockLayer, name: string): DriverOptions {
  const prefix = protocolPrefix(name);
  if (prefix === 'json') return jsonOptions(layer, name.slice('json:'.length));
  if (prefix === null) return pathOptions(name);
  const driver =
    layer.drivers[prefix] ??
    Object.values(layer.drivers).find(({ namePrefixes }) => namePrefixes?.includes(prefix));
  const rest = name.slice(prefix.length + 1);
  if (driver?.parseName !== undefined) return { driver: driver.name, ...driver.parseName(rest, prefix) };
  if (driver?.kind !== 'protocol') throw new BlockError(`Unknown protocol '${prefix}'`);
  // What is left is a path, which must not look like another name when it is shown or joined.
  return { driver: prefix, filename: protocolPrefix(rest) === null ? rest : `./${rest}` };
}

/** Options of the node for a path, which may look like anything. */
export function pathOptions(name: string): DriverOptions {
  return { driver: isHostDevice(name) ? 'host_device' : 'file', filename: name };
}

function isHostDevice(name: string): boolean {
  if (isOnOwnMount(name)) return false;
  try {
    const stat = statSync(hostPath(name));
    return stat.isBlockDevice() || stat.isCharacterDevice();
  } catch {
    // Opening it as a file says what is wrong.
    return false;
  }
}

/** Options of a json: name: an object, members in dotted form expanded. */
function jsonOptions(layer: BlockLayer, text: string): DriverOptions {
  let value: unknown;
  try {
    value = layer.definitions.parseJson(text);
  } catch (error) {
    throw new BlockError(`Could not parse the JSON options: ${(error as Error).message}`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new BlockError('Invalid JSON object given');
  return expanded(value) as DriverOptions;
}

/** Members in dotted form, at any depth, as nested objects; of two that contradict each other the later counts. */
function expanded(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(expanded);
  if (!isRecord(value)) return value;
  const options = Object.create(null) as Record<string, unknown>;
  for (const [key, member] of Object.entries(value)) {
    const keys = key.split('.');
    let at = options;
    for (const part of keys.slice(0, -1)) {
      const inner = at[part];
      const next = isRecord(inner) ? inner : (Object.create(null) as Record<string, unknown>);
      at[part] = next;
      at = next;
    }
    const last = keys.at(-1)!;
    const inner = expanded(member);
    const before = at[last];
    at[last] = isRecord(before) && isRecord(inner) ? { ...before, ...inner } : inner;
  }
  return options;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null) return false;
  const kind: unknown = Object.getPrototypeOf(value);
  return kind === null || kind === Object.prototype;
}

/** The name of a file that `node`'s image refers to: relative names are relative to the image. */
export function absoluteBackingName(node: BlockNode, filename: string): string {
  if (protocolPrefix(filename) !== null || path.isAbsolute(filename)) return filename;
  const { noPlace } = bottomOf(node).driver;
  if (noPlace !== undefined) throw new BlockError(noPlace);
  const own = placeOf(node);
  if (own === null)
    throw new BlockError(`Cannot use relative backing file names for '${nodeFilename(node)}'`);
  return relativeName(own, filename);
}

/** The name of the file that a node's image is in, whatever is in between; null where there is no telling. */
export function placeOf(node: BlockNode): string | null {
  const bottom = bottomOf(node);
  return bottom.driver.noPlace === undefined ? exactFilename(bottom) : null;
}

/** The node in which the bytes of an image are: the last of the primary children, or one that has many. */
function bottomOf(node: BlockNode): BlockNode {
  let at = node;
  while (at.driver.noPlace === undefined && at.primaryChild !== null) at = at.primaryChild.node;
  return at;
}

/** `filename` as seen from the image `base`. */
export function relativeName(base: string, filename: string): string {
  if (protocolPrefix(filename) !== null || path.isAbsolute(filename)) return filename;
  const prefix = protocolPrefix(base);
  const afterPrefix = prefix === null ? 0 : prefix.length + 1;
  return base.slice(0, Math.max(base.lastIndexOf('/') + 1, afterPrefix)) + filename;
}

/** The format inside a protocol node: the driver that is surest, raw when none is. */
export async function probeFormat(node: BlockNode): Promise<string> {
  const bytes = Math.min(PROBE_BYTES, node.totalBytes);
  const memory = allocateIoMemory(PROBE_BYTES);
  memory.buf.fill(0);
  if (bytes > 0) await wrapped.preadv(node, 0, bytes, vectorOf(memory, 0, bytes), 0);
  let best = 'raw';
  let bestScore = 0;
  for (const driver of Object.values(node.layer.drivers)) {
    const score = driver.probe?.(memory.buf.subarray(0, PROBE_BYTES), nodeFilename(node)) ?? 0;
    if (score <= bestScore) continue;
    best = driver.name;
    bestScore = score;
  }
  return best;
}
