/** What `--help`, `--version` and the help of single options print. */

import { CHARDEV_BACKEND_KINDS } from '../src/chardev/table.ts';
import { QOM_TYPES, qomProperties } from '../src/objects/types.ts';
import { PACKAGE_VERSION, VERSION_INFO } from '../src/qmp/version.ts';

/** The text of `--help`. */
export function usage(program: string): string {
  return `Usage: ${program} [options]
Block storage daemon that speaks QMP

  -h, --help             display this help and exit
  -T, --trace [[enable=]<pattern>][,events=<file>][,file=<file>]
                         accepted for compatibility; there are no trace events
  -V, --version          output version information and exit

  --blockdev [driver=]<driver>[,node-name=<N>][,discard=ignore|unmap]
             [,cache.direct=on|off][,cache.no-flush=on|off]
             [,read-only=on|off][,auto-read-only=on|off]
             [,force-share=on|off][,detect-zeroes=on|off|unmap]
             [,driver specific parameters...]
                         configure a block backend

  --chardev <options>    configure a character device backend
                         (see the qemu(1) man page for possible options)

  --config <path>        carry out a configuration file (YAML or JSON), or all
                         those of a folder in the order of their names; the
                         members object, chardev, blockdev, nbd-server, export,
                         monitor, qmp and metrics hold what the options of these
                         names take

  --daemonize            daemonize the process, and have the parent exit
                         once startup is complete

  --embedded <dir>       serve a disk kept in <dir> over NBD, with QMP on a UNIX
                         socket in <dir> and on a WebSocket

  --engine auto|io_uring|threads
                         choose the engine for asynchronous I/O

  --export [type=]nbd,id=<id>,node-name=<node-name>[,name=<export-name>]
           [,writable=on|off][,bitmap=<name>][,bitmaps.0=<name>...]
           [,allocation-depth=on|off][,description=<text>]
                         export the specified block node over NBD
                         (requires --nbd-server)

  --export [type=]fuse,id=<id>,node-name=<node-name>,mountpoint=<file>
           [,growable=on|off][,writable=on|off][,allow-other=on|off|auto]
                         export the specified block node over FUSE

  --export [type=]vhost-user-blk,id=<id>,node-name=<node-name>,
           addr.type=unix,addr.path=<socket-path>[,writable=on|off]
           [,logical-block-size=<block-size>][,num-queues=<num-queues>]
                         export the specified block node as a
                         vhost-user-blk device over UNIX domain socket
  --export [type=]vhost-user-blk,id=<id>,node-name=<node-name>,
           addr.type=fd,addr.str=<fd>[,writable=on|off]
           [,logical-block-size=<block-size>][,num-queues=<num-queues>]
                         export the specified block node as a
                         vhost-user-blk device over file descriptor

  --log-file <path>      add the log to a file instead of writing it to
                         standard error, which --daemonize leaves behind

  --log-level trace|debug|info|warn|error|fatal|silent
                         least severe messages that are logged (default: warn);
                         info: who connects, debug: every QMP command

  --metrics <host>:<port>[,token=<token>][,token-file=<path>][,remote=on|off]
                         serve metrics to Prometheus: GET /metrics, with the
                         token as Bearer or as ?token=

  --monitor [chardev=]name[,mode=control][,pretty[=on|off]]
                         configure a QMP monitor

  --nbd-server addr.type=inet,addr.host=<host>,addr.port=<port>
               [,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>]
               [,handshake-max-seconds=<n>]
  --nbd-server addr.type=unix,addr.path=<path>
               [,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>]
               [,handshake-max-seconds=<n>]
                         start an NBD server for exporting block nodes

  --object help          list object types that can be added
  --object <type>,help   list properties for the given object type
  --object <type>[,<property>=<value>...]
                         create a new object of type <type>, setting
                         properties in the order they are specified. Note
                         that the 'id' property must be set.
                         See the qemu(1) man page for documentation of the
                         objects that can be added.

  --pidfile <path>       write process ID to a file after startup

  --qmp unix:<path>|tcp:<host>:<port>|stdio[,pretty=on|off]
  --qmp ws:<host>:<port>[,token=<token>][,token-file=<path>][,remote=on|off]
        [,pretty=on|off]
  --qmp fd:<name>|ws-fd:<name>[,...]
                         serve QMP to several clients at once; fd, ws-fd: on a
                         socket that the service manager has passed under that
                         name (also --nbd-server addr.type=fd,addr.str=<name>)

  --restore <file>       carry out the configuration that --save has kept in
                         <file>, if there is one; nodes, NBD server and exports
                         of --config are left out then
  --save <file>          keep the running objects, block nodes, NBD server and
                         exports in <file>; a command is answered when its
                         change is in there

Environment:
  QBLOCKD_LOG            level of the log when --log-level is not given
  QBLOCKD_ENGINE         engine when --engine is not given
  NO_COLOR               set: no colours in the log on a terminal
`;
}

/** The text of `--version`. */
export function versionText(program: string): string {
  const { major, minor, micro } = VERSION_INFO.qemu;
  return `${program} version ${PACKAGE_VERSION} (QMP of qemu-storage-daemon ${major}.${minor}.${micro})\n`;
}

/** The answer to `--chardev help`. */
export function chardevKinds(): string {
  return `Available chardev backend types: \n${CHARDEV_BACKEND_KINDS.map((kind) => `  ${kind}\n`).join('')}`;
}

/** The answer to `--object help`, and to `--object TYPE,help` for a known type. */
export function objectHelp(typeName: string | undefined): string {
  const type = typeName !== undefined && Object.hasOwn(QOM_TYPES, typeName) ? QOM_TYPES[typeName] : undefined;
  if (type?.userCreatable === true && typeName !== undefined) {
    // What cannot be set is not shown. Sorted as the lines are, which puts x-bps-max before x-bps.
    const settable = qomProperties(typeName).filter(([name]) => name !== 'type' && name !== 'loaded');
    const lines = settable.map(([name, kind]) => `  ${name}=<${kind}>\n`);
    return `${typeName} options:\n${lines.sort().join('')}`;
  }
  const names = Object.keys(QOM_TYPES).filter((name) => QOM_TYPES[name]?.userCreatable === true);
  return `List of user creatable objects:\n${names
    .sort()
    .map((name) => `  ${name}\n`)
    .join('')}`;
}
