/**
 * The argument of `--chardev`: from its flat pairs to the structure that chardev-add takes.
 */

import type { ChardevBackend, ChardevCommon, SocketAddressLegacy } from '../../schema/generated/types.ts';
import { BlockError } from '../../src/errors/error.ts';
import type { OptionTypes, ParsedOptions } from './qemu-opts.ts';

/** The keys of all backends together: which of them a backend looks at is its matter, as in the original. */
export const CHARDEV_OPTIONS: OptionTypes = {
  abstract: 'bool',
  append: 'bool',
  backend: 'str',
  chardev: 'str',
  'chardevs.0': 'str',
  'chardevs.1': 'str',
  'chardevs.2': 'str',
  'chardevs.3': 'str',
  fd: 'str',
  host: 'str',
  ipv4: 'bool',
  ipv6: 'bool',
  localaddr: 'str',
  localport: 'str',
  logappend: 'bool',
  logfile: 'str',
  logtimestamp: 'bool',
  mux: 'bool',
  nodelay: 'bool',
  delay: 'bool',
  path: 'str',
  port: 'str',
  reconnect: 'num',
  'reconnect-ms': 'num',
  server: 'bool',
  signal: 'bool',
  size: 'size',
  telnet: 'bool',
  tight: 'bool',
  'tls-authz': 'str',
  'tls-creds': 'str',
  tn3270: 'bool',
  to: 'num',
  wait: 'bool',
  websocket: 'bool',
};

/** Typed access to the pairs; what was not given is undefined. */
class Pairs {
  readonly #values: ParsedOptions['values'];

  constructor(values: ParsedOptions['values']) {
    this.#values = values;
  }

  text(key: string): string | undefined {
    const value = this.#values.get(key);
    return typeof value === 'string' ? value : undefined;
  }

  flag(key: string): boolean | undefined {
    const value = this.#values.get(key);
    return typeof value === 'boolean' ? value : undefined;
  }

  number(key: string): number | undefined {
    const value = this.#values.get(key);
    return typeof value === 'number' ? value : undefined;
  }
}

/** The record without the members that are undefined: for the types optional means absent. */
function present<T extends object>(record: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  const entries = Object.entries(record).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]: Exclude<T[K], undefined> };
}

type Optional<T> = { readonly [K in keyof T]?: T[K] | undefined };

/** Drops undefined members of a record whose other members are right already. */
function common(pairs: Pairs): ChardevCommon {
  const options: Optional<ChardevCommon> = {
    logfile: pairs.text('logfile'),
    logappend: pairs.flag('logappend'),
    logtimestamp: pairs.flag('logtimestamp'),
  };
  return present(options) as ChardevCommon;
}

function required(pairs: Pairs, key: string, message: string): string {
  const value = pairs.text(key);
  if (value === undefined) throw new BlockError(`chardev: ${message}`);
  return value;
}

function socketAddress(pairs: Pairs): SocketAddressLegacy {
  const path = pairs.text('path');
  const host = pairs.text('host');
  const fd = pairs.text('fd');
  if ([path, host, fd].filter((value) => value !== undefined).length > 1) {
    throw new BlockError("None or one of 'path', 'fd' or 'host' option required.");
  }
  if (path !== undefined) {
    const flags = present({ abstract: pairs.flag('abstract'), tight: pairs.flag('tight') });
    return { type: 'unix', data: { path, ...flags } } as SocketAddressLegacy;
  }
  if (host === undefined) return { type: 'fd', data: { str: fd ?? '' } };
  const port = required(pairs, 'port', 'socket: no port given');
  const inet = present({ to: pairs.number('to'), ipv4: pairs.flag('ipv4'), ipv6: pairs.flag('ipv6') });
  return { type: 'inet', data: { host, port, ...inet } } as SocketAddressLegacy;
}

function socketOptions(pairs: Pairs): ChardevBackend {
  const addr = socketAddress(pairs);
  const server = pairs.flag('server') ?? false;
  const delay = pairs.flag('delay');
  const options = present({
    wait: pairs.flag('wait') ?? (server ? true : undefined),
    nodelay: delay === undefined ? pairs.flag('nodelay') : !delay,
    telnet: pairs.flag('telnet'),
    tn3270: pairs.flag('tn3270'),
    websocket: pairs.flag('websocket'),
    reconnect: pairs.number('reconnect'),
    'reconnect-ms': pairs.number('reconnect-ms'),
    'tls-creds': pairs.text('tls-creds'),
    'tls-authz': pairs.text('tls-authz'),
  });
  return { type: 'socket', data: { ...common(pairs), addr, server, ...options } } as ChardevBackend;
}

function inet(host: string, port: string, flags: object): SocketAddressLegacy {
  return { type: 'inet', data: { host, port, ...flags } };
}

function udpOptions(pairs: Pairs): ChardevBackend {
  const port = required(pairs, 'port', 'udp: remote port not specified');
  const flags = present({ ipv4: pairs.flag('ipv4'), ipv6: pairs.flag('ipv6') });
  const localHost = pairs.text('localaddr');
  const localPort = pairs.text('localport');
  const hasLocal = localHost !== undefined || localPort !== undefined;
  const remote = inet(pairs.text('host') ?? 'localhost', port, flags);
  const data = hasLocal ? { remote, local: inet(localHost ?? '', localPort ?? '0', {}) } : { remote };
  return { type: 'udp', data: { ...common(pairs), ...data } };
}

function hubMembers(pairs: Pairs): string[] {
  const members = [0, 1, 2, 3].map((index) => pairs.text(`chardevs.${index}`));
  return members.filter((id) => id !== undefined);
}

/** Older names that the command line takes. */
const ALIASES: Readonly<Record<string, ChardevBackend['type']>> = { tty: 'serial', parport: 'parallel' };

/** What chardev-add would be given for these pairs. */
export function chardevBackend(kind: string, values: ParsedOptions['values']): ChardevBackend {
  const pairs = new Pairs(values);
  const shared = common(pairs);
  const type = ALIASES[kind] ?? kind;
  switch (type) {
    case 'null':
      return { type, data: shared };
    case 'pty':
      return { type: 'pty', data: { ...shared, ...present({ path: pairs.text('path') }) } } as ChardevBackend;
    case 'hub':
      return { type: 'hub', data: { ...shared, chardevs: hubMembers(pairs) } };
    case 'serial':
    case 'parallel': {
      const what = type === 'serial' ? 'serial/tty' : type;
      const device = required(pairs, 'path', `${what}: no device path given`);
      return { type, data: { ...shared, device } };
    }
    case 'socket':
      return socketOptions(pairs);
    case 'udp':
      return udpOptions(pairs);
    case 'stdio':
      return { type: 'stdio', data: { ...shared, ...present({ signal: pairs.flag('signal') }) } };
    case 'ringbuf':
    case 'memory':
      return { type, data: { ...shared, ...present({ size: pairs.number('size') }) } };
    case 'mux':
      return {
        type: 'mux',
        data: { ...shared, chardev: required(pairs, 'chardev', 'mux: no chardev given') },
      };
    case 'pipe':
      return {
        type: 'pipe',
        data: { ...shared, device: required(pairs, 'path', 'pipe: no device path given') },
      };
    case 'file': {
      const out = required(pairs, 'path', 'file: no filename given');
      return { type: 'file', data: { ...shared, out, ...present({ append: pairs.flag('append') }) } };
    }
    default:
      throw new BlockError(`'${kind}' is not a valid char driver name`);
  }
}
