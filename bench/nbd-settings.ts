/**
 * What `npm run bench` measures: the settings a disk is exported in, the servers there are for each, and the loads.
 */

import { type Figures, type Load, load, qblockd } from './fio.ts';
import type { Argv } from './measure.ts';

/** Files and sockets of one setting. */
export interface Place {
  readonly file: string;
  readonly socket: string;
  /** Folder with keys.psk. */
  readonly keys: string;
}

export interface Server {
  readonly name: string;
  /** The program that must be there. */
  readonly program: string;
  readonly argv: (place: Place) => Argv;
}

/** A load of this bench's. */
interface DiskLoad extends Load {
  /** The part of the disk that is used, from its start; default: all of it. */
  readonly spanMib?: number;
  /** Each measurement begins with dirty pages: a second of the same comes before it, and no sync. */
  readonly isDirty?: boolean;
}

export interface SettingLoad extends DiskLoad {
  /** Connections at a time. */
  readonly connections: number;
  /** Is in the table of --quick. */
  readonly quick: boolean;
}

export interface Setting {
  /** Comes before the load in a row's name. */
  readonly name: string;
  /** Where the file is; null: there is none. */
  readonly folder: 'disk' | 'tmpfs' | null;
  readonly servers: readonly Server[];
  readonly loads: readonly SettingLoad[];
  /** Clients speak TLS. */
  readonly tls?: boolean;
}

export type { Figures };

/** The line of keys.psk that all sides know, of the user that the original's client is by default. */
export const KEY_LINE = `qemu:${'0123456789abcdef'.repeat(4)}\n`;

function loads(parts: readonly [DiskLoad, boolean][], connections = 1): SettingLoad[] {
  return parts.map(([each, quick]) => ({
    ...each,
    name: connections > 1 ? `${each.name}, ${connections} connections` : each.name,
    connections,
    quick,
  }));
}

const read = (blockSize: string, depth: number): Load =>
  load(blockSize === '4k' ? 'randread' : 'read', blockSize, depth);
const write = (blockSize: string, depth: number): Load =>
  load(blockSize === '4k' ? 'randwrite' : 'write', blockSize, depth);

/**
 * 4k writes into pages that are dirty already: the file system has nothing to do for them. The random ones above begin with
 * a clean file, and most of their pages are clean when they come to them.
 */
const overwrite = (depth: number): DiskLoad => ({
  ...write('4k', depth),
  name: `4k overwrite of dirty pages, depth ${depth}`,
  spanMib: DIRTY_SPAN_MIB,
  isDirty: true,
});

/** Small enough for a second of warm-up to have written every page of it, large enough not to be the same pages all the time. */
const DIRTY_SPAN_MIB = 64;

/** The arguments qblockd and qemu-storage-daemon share. */
function daemonArguments(
  { socket }: Place,
  nodes: readonly string[],
  server: readonly string[] = [],
): string[] {
  return [
    ...nodes.flatMap((node) => ['--blockdev', node]),
    ...server.slice(0, 2),
    ...['--nbd-server', `addr.type=unix,addr.path=${socket}${server[2] ?? ''}`],
    ...['--export', 'nbd,id=disk,node-name=disk,name=,writable=on'],
  ];
}

function fileNodes({ file }: Place, options: string): string[] {
  return [`file,node-name=file,filename=${file}${options}`, 'raw,node-name=disk,file=file'];
}

function daemon(
  name: string,
  program: string,
  nodes: (place: Place) => readonly string[],
  server: (place: Place) => readonly string[] = () => [],
): Server {
  return {
    name,
    program,
    argv: (place) => [program, ...daemonArguments(place, nodes(place), server(place))],
  };
}

const QSD = 'qemu-storage-daemon';

/** qblockd and the original with both of its engines, over the given options of the file's node. */
function daemons(options: string, engines: readonly string[], ours = ''): Server[] {
  return [
    daemon('qblockd', qblockd, (place) => fileNodes(place, `${options}${ours}`)),
    ...engines.map((aio) => daemon(`qemu ${aio}`, QSD, (place) => fileNodes(place, `${options},aio=${aio}`))),
  ];
}

const NBDKIT: Server = {
  name: 'nbdkit',
  program: 'nbdkit',
  argv: ({ file, socket }) => ['nbdkit', '--foreground', '--unix', socket, 'file', file],
};

const tlsArguments = ({ keys }: Place): string[] => [
  '--object',
  `tls-creds-psk,id=tls,endpoint=server,dir=${keys}`,
  ',tls-creds=tls',
];

const NULL_NODE = ['null-co,node-name=disk,size=1073741824,read-zeroes=off'];

/** All settings; with `other`, a build of the daemon by the path of its launcher, as one more server in each. */
export function settingsOf(other: string): readonly Setting[] {
  const settings: readonly Setting[] = [
    {
      name: 'raw',
      folder: 'disk',
      servers: [...daemons('', ['threads', 'io_uring']), NBDKIT],
      loads: loads([
        ...[1, 16, 64].map((depth): [Load, boolean] => [read('4k', depth), depth < 64]),
        ...[1, 16, 64].map((depth): [Load, boolean] => [write('4k', depth), depth < 64]),
        [read('256k', 8), true],
        [write('256k', 8), true],
        ...[16, 64].map((depth): [DiskLoad, boolean] => [overwrite(depth), depth === 16]),
      ]),
    },
    {
      name: 'raw',
      folder: 'disk',
      servers: [...daemons('', ['threads', 'io_uring']), NBDKIT],
      loads: loads([[read('4k', 16), true]], 4),
    },
    {
      name: 'null-co',
      folder: null,
      servers: [
        daemon('qblockd', qblockd, () => NULL_NODE),
        daemon('qemu threads', QSD, () => NULL_NODE),
        {
          name: 'nbdkit',
          program: 'nbdkit',
          argv: ({ socket }) => ['nbdkit', '--foreground', '--unix', socket, 'null', '1G'],
        },
      ],
      loads: loads([
        [read('4k', 1), false],
        [read('4k', 16), true],
        [write('4k', 16), false],
      ]),
    },
    {
      name: 'tmpfs',
      folder: 'tmpfs',
      servers: [...daemons('', ['threads', 'io_uring']), NBDKIT],
      loads: loads([
        [read('4k', 16), true],
        [write('4k', 16), true],
        [read('256k', 8), false],
      ]),
    },
    {
      name: 'direct',
      folder: 'disk',
      servers: daemons(',cache.direct=on', ['native', 'io_uring'], ',aio=native'),
      loads: loads([
        ...[1, 16, 64].map((depth): [Load, boolean] => [read('4k', depth), depth < 64]),
        ...[1, 16, 64].map((depth): [Load, boolean] => [write('4k', depth), depth === 16]),
        [read('256k', 8), false],
      ]),
    },
    {
      name: 'TLS',
      folder: 'disk',
      servers: [
        daemon('qblockd', qblockd, (place) => fileNodes(place, ''), tlsArguments),
        daemon('qemu io_uring', QSD, (place) => fileNodes(place, ',aio=io_uring'), tlsArguments),
      ],
      loads: loads([
        [read('4k', 16), true],
        [read('256k', 8), false],
      ]),
      tls: true,
    },
  ];
  if (other === '') return settings;
  return settings.map((setting) => {
    const { argv } = setting.servers[0]!;
    const build: Server = {
      name: 'other',
      program: other,
      argv: (place) => [other, ...argv(place).slice(1)],
    };
    return { ...setting, servers: [...setting.servers, build] };
  });
}
