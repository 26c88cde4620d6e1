/** What man pages say beside the tables of options: descriptions, examples, files. The examples are run by a test. */

import type { Program } from './programs.ts';

type Page = Pick<Program, 'description' | 'examples' | 'seeAlso'> &
  Partial<Pick<Program, 'environment' | 'files'>>;

const ENGINE = ['QBLOCKD_ENGINE', 'engine for asynchronous I/O: auto, io_uring or threads'] as const;

/** By program. */
export const PAGES: Readonly<Record<string, Page>> = {
  qblockd: {
    description: [
      'qblockd opens disk images, local and remote, builds a graph of block nodes from them, runs jobs on it (mirror, backup, stream, commit) and exports nodes over NBD, as vhost-user-blk devices for virtual machines, and as files through FUSE. It is told what to do by its options, by configuration files, and over QMP while it runs. Its command line and its QMP are those of qemu-storage-daemon 7.2, with additions.',
      'Options are carried out in the order in which they stand: a node must be there before its export. The daemon ends on SIGTERM, SIGINT and the QMP command quit; exports are closed, and images written back and closed, before it goes. SIGHUP adds what is new in the files of --config and opens the log file anew; where there is neither, it ends the daemon. SIGUSR2 writes down what the daemon is doing (--dump-file).',
      'For --blockdev, --chardev, --export, --monitor, --nbd-server and --object the word "help" in place of the value lists what there is, and behind a comma the options of one: --blockdev help, --blockdev qcow2,help, --export nbd,help, --object secret,help. The first five also take JSON.',
    ],
    examples: [
      [
        `qblockd --blockdev qcow2,node-name=d,file.driver=file,file.filename=base.qcow2 \\
  --nbd-server addr.type=unix,addr.path=nbd.sock \\
  --export nbd,id=e,node-name=d,writable=on --qmp unix:qmp.sock`,
        'serve a qcow2 image over NBD, with QMP on a socket',
      ],
      ['qblockd --blockdev qcow2,help', 'list the options of a driver'],
    ],
    files: [
      ['/etc/qblockd/', 'configuration of the service of the Debian package, read in the order of the names'],
      ['/run/qblockd/qmp.sock', 'where that service speaks QMP'],
    ],
    seeAlso: ['qblock-img(1)', 'qblock-io(1)', 'qblock-nbd(1)', 'qblock-shell(1)', 'qemu-storage-daemon(1)'],
  },
  'qblock-img': {
    description: [
      'qblock-img works on disk images that nobody else is writing to: it takes the locks that qblockd and QEMU take. Commands, options, output and exit statuses are those of qemu-img 7.2, with additions; "qblock-img COMMAND --help" prints the help of one command.',
      'An image is given as a path, as PROTOCOL:..., as json:{...}, or with --image-opts as the options of a block node, such as driver=qcow2,file.filename=disk. SIZE is in bytes, or has a suffix k, M, G, T, P or E (powers of 1024).',
      'Images from others should be looked at with --untrusted and -f: nothing is opened then that only the image names.',
    ],
    environment: [ENGINE],
    examples: [
      ['qblock-img create -f qcow2 base.qcow2 1G', 'make an image'],
      ['qblock-img create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2', 'make an image on top of it'],
      ['qblock-img convert -O raw top.qcow2 copy.raw', 'copy the content into a raw file'],
      ['qblock-img compare -f qcow2 -F raw top.qcow2 copy.raw', 'compare the two'],
      ['qblock-img info --output json top.qcow2', 'describe an image for a script'],
      ['qblock-img check top.qcow2', 'check its metadata'],
    ],
    seeAlso: ['qblockd(1)', 'qblock-io(1)', 'qblock-nbd(1)', 'qemu-img(1)'],
  },
  'qblock-io': {
    description: [
      'qblock-io exercises a disk image: it reads, writes and discards ranges, checks patterns, and tells what is allocated. It is made for tests and for looking at images by hand.',
    ],
    environment: [ENGINE],
    examples: [
      [
        "qblock-io -f raw -c 'write -P 7 0 64k' -c 'read -P 7 0 64k' disk.raw",
        'write a pattern, and check it',
      ],
      ['qblock-io -r -c map base.qcow2', 'show what is allocated'],
    ],
    seeAlso: ['qblockd(1)', 'qblock-img(1)', 'qemu-io(1)'],
  },
  'qblock-nbd': {
    description: [
      'qblock-nbd serves one disk image over NBD until its last client has gone (or, with -t, until a signal comes), or lists what another server offers. For several disks at once, and for changes while it runs, there is qblockd.',
    ],
    environment: [
      ENGINE,
      ['LISTEN_FDS', 'with LISTEN_PID: a service manager hands over the listening socket'],
    ],
    examples: [
      [
        'qblock-nbd -t -f qcow2 -k $PWD/disk.sock base.qcow2',
        'serve an image on a socket until a signal comes',
      ],
      ['qblock-nbd -L -k $PWD/disk.sock', 'list what the server on the socket offers'],
    ],
    seeAlso: ['qblockd(1)', 'qblock-img(1)', 'nbd-client(8)', 'qemu-nbd(8)'],
  },
  'qblock-shell': {
    description: [
      'qblock-shell is QMP by hand: commands are typed with KEY=VALUE arguments, answers and events are shown as they come, and Tab completes commands, arguments and the names of nodes, jobs and exports. With -c it runs lines for a script.',
    ],
    environment: [['XDG_STATE_HOME', 'where the history is kept (default: the home directory)']],
    files: [['~/.qblock-shell_history', 'lines that have been typed']],
    examples: [
      ['qblock-shell $PWD/qmp.sock', 'type commands to the daemon on the socket'],
      [
        `qblock-shell -c 'blockdev-add driver=null-co node-name=n size=1048576' \\
  -c query-block-exports $PWD/qmp.sock`,
        'run two commands',
      ],
    ],
    seeAlso: ['qblockd(1)'],
  },
};
