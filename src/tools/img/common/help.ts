/** The tool's help and version texts. */

import { drivers } from '../../../drivers/table.ts';
import { PACKAGE_VERSION, VERSION_INFO } from '../../../qmp/version.ts';

export function versionText(program: string): string {
  const { major, minor, micro } = VERSION_INFO.qemu;
  return `${program} version ${PACKAGE_VERSION} (options and output of qemu-img ${major}.${minor}.${micro})\n`;
}

export function usage(program: string): string {
  return `${versionText(program)}usage: ${program} [standard options] command [command options]
Makes, converts, checks and describes disk images

    '-h', '--help'       display this help and exit
    '-V', '--version'    output version information and exit
    '-T', '--trace'      [[enable=]<pattern>][,events=<file>][,file=<file>]
                         accepted for compatibility; there are no trace events

Command syntax:
  amend [--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename
  bench [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] [-n] [--no-drain] [-o offset] [--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] filename
  bitmap (--merge source | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] [-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap
  check [--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U] filename
  commit [--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] filename
  compare [--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2
  convert [--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] [-U] [-C] [-c] [-p] [-q] [-n] [-f fmt] [-t cache] [-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] [-l snapshot_param] [-S sparse_size] [-r rate_limit] [-m num_coroutines] [-W] [--salvage] filename [filename2 [...]] output_filename
  create [--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]
  dd [--image-opts] [-U] [-f fmt] [-O output_fmt] [bs=block_size] [count=blocks] [skip=blocks] if=input of=output
  info [--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] filename
  map [--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] filename
  measure [--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] [--image-opts] [-f fmt] [-l snapshot_param] filename]
  rebase [--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] [-c] -b backing_file [-F backing_fmt] filename
  snapshot [--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename
  resize [--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] filename [+ | -]size

Parameters of commands:
  filename        a path, PROTOCOL:..., or json:{...}; with --image-opts the
                  options of a block node, such as driver=qcow2,file.filename=x
  objectdef       an object, such as secret,id=sec0,file=passphrase.txt
  fmt             format of an image; found out by looking when not given
  cache           none, writeback, writethrough, directsync or unsafe; convert
                  writes with unsafe, everything else with writeback
  src_cache       the same, for images that are read
  size            bytes, or with a suffix: k, M, G, T, P or E (powers of 1024)
  options         name=value,...; "-o help" lists those of the format
  snapshot_param  a snapshot's ID or name, or snapshot.id=ID,snapshot.name=NAME
  -b, -B          backing file of the image that is made, -F its format
  -u              do not look at the backing file
  -p              show progress
  -q              print errors only
  -U              the image may be in use for writing by others
  --untrusted     images open no other files: no backing file, data file or
                  extent that only they name; their format must be given
  --output        human or json

convert:
  -               as source or target: standard input or output; FIFOs too. Raw (or
                  raw compressed by gzip, xz, zstd) comes in, raw goes out
  -c              compress (formats that can)
  -n              the target exists: do not make it
  -S              least length of zeroes that become a hole (default 4k);
                  0: nothing is looked for, the target is fully allocated
  -m              requests in flight (default 8)
  -W              write in any order
  -C              let the host copy
  --target-is-zero
                  the target is known to read as zeroes (with -n)
  --salvage       go on after read errors, with zeroes

check:
  -r leaks        repair leaked clusters
  -r all          repair everything that can be repaired

snapshot:
  -l              list snapshots (default)
  -a, -c, -d      apply, create or delete the snapshot of that name

compare:
  -f, -F          formats of the first and the second image
  -s              sizes and allocation must be equal too

Supported formats: ${Object.keys(drivers).sort().join(' ')}
`;
}
