/** The table of commands: names, arguments, help, and what carries them out. */

import * as breakpoints from './breakpoints.ts';
import * as manage from './manage.ts';
import { reopen } from './reopen.ts';
import * as requests from './requests.ts';
import { CommandFailed, type IoSession } from './session.ts';
import * as status from './status.ts';

export interface IoCommand {
  readonly name: string;
  readonly short?: string;
  readonly minWords: number;
  /** -1: any number. */
  readonly maxWords: number;
  readonly words: string;
  readonly oneLine: string;
  /** The longer help, for `help NAME`. */
  readonly help?: string;
  readonly needsImage: boolean;
  readonly run: (session: IoSession, words: readonly string[]) => Promise<void>;
}

const SHARED_FLAGS = ` -C   print the figures in a form for machines
 -q   print no figures
`;

const help = (session: IoSession, words: readonly string[]): Promise<void> => showHelp(session, words);

/** In alphabetical order. */
export const COMMANDS: readonly IoCommand[] = [
  {
    name: 'abort',
    minWords: 0,
    maxWords: 0,
    words: '',
    oneLine: 'simulate a program crash using abort(3)',
    needsImage: false,
    run: manage.abort,
  },
  {
    name: 'aio_flush',
    minWords: 0,
    maxWords: 0,
    words: '',
    oneLine: 'completes all outstanding aio requests',
    needsImage: true,
    run: requests.aioFlush,
  },
  {
    name: 'aio_read',
    minWords: 2,
    maxWords: -1,
    words: '[-Ciqv] [-P pattern] off len [len..]',
    oneLine: 'asynchronously reads a number of bytes',
    needsImage: true,
    run: requests.aioRead,
    help: `
 Starts a read of one buffer for each length and goes on; the outcome is printed when it is there.
 Counts as a success once it has been started. aio_flush waits for all of them.
${SHARED_FLAGS} -i   count the request as invalid, and do nothing
 -P   compare what was read with this byte
 -v   print what was read
`,
  },
  {
    name: 'aio_write',
    minWords: 2,
    maxWords: -1,
    words: '[-Cfiquz] [-P pattern] off len [len..]',
    oneLine: 'asynchronously writes a number of bytes',
    needsImage: true,
    run: requests.aioWrite,
    help: `
 Starts a write of one buffer for each length and goes on; the outcome is printed when it is there.
 Counts as a success once it has been started. aio_flush waits for all of them.
${SHARED_FLAGS} -f   the data is on stable storage afterwards (FUA)
 -i   count the request as invalid, and do nothing
 -P   write this byte (default: 0xcd)
 -u   with -z: the range may be unmapped
 -z   write zeroes without sending data
`,
  },
  {
    name: 'alloc',
    short: 'a',
    minWords: 1,
    maxWords: 2,
    words: 'offset [count]',
    oneLine: 'checks if offset is allocated in the file',
    needsImage: true,
    run: status.alloc,
  },
  {
    name: 'break',
    minWords: 2,
    maxWords: 2,
    words: 'event tag',
    oneLine: 'sets a breakpoint on event and tags the stopped request as tag',
    needsImage: true,
    run: breakpoints.set,
  },
  {
    name: 'close',
    short: 'c',
    minWords: 0,
    maxWords: 0,
    words: '',
    oneLine: 'close the current open file',
    needsImage: true,
    run: manage.close,
  },
  {
    name: 'discard',
    short: 'd',
    minWords: 2,
    maxWords: -1,
    words: '[-Cq] off len',
    oneLine: 'discards a number of bytes at a specified offset',
    needsImage: true,
    run: requests.discard,
    help: `
 Tells the image that the content of a range is of no interest.
${SHARED_FLAGS}`,
  },
  {
    name: 'flush',
    short: 'f',
    minWords: 0,
    maxWords: 0,
    words: '',
    oneLine: 'flush all in-core file state to disk',
    needsImage: true,
    run: requests.flush,
  },
  {
    name: 'help',
    short: '?',
    minWords: 0,
    maxWords: 1,
    words: '[command]',
    oneLine: 'help for one or all commands',
    needsImage: false,
    run: help,
  },
  {
    name: 'info',
    short: 'i',
    minWords: 0,
    maxWords: 0,
    words: '',
    oneLine: 'prints information about the current file',
    needsImage: true,
    run: status.info,
  },
  {
    name: 'length',
    short: 'l',
    minWords: 0,
    maxWords: 0,
    words: '',
    oneLine: 'gets the length of the current file',
    needsImage: true,
    run: status.length,
  },
  {
    name: 'map',
    minWords: 0,
    maxWords: 0,
    words: ' ',
    oneLine: 'prints the allocated areas of a file',
    needsImage: true,
    run: status.map,
  },
  {
    name: 'open',
    short: 'o',
    minWords: 1,
    maxWords: -1,
    words: '[-rsCnkU] [-t cache] [-d discard] [-o options] [path]',
    oneLine: 'open the file specified by path',
    needsImage: false,
    run: manage.open,
    help: `
 Opens an image for the commands that follow.
 -r   read-only
 -n   without the page cache, like -t none
 -t   cache mode: none, writeback, writethrough, directsync, unsafe
 -d   discard mode: ignore or unmap
 -o   options of the image's node; with driver=..., its format
 -U   let other processes write to it meanwhile
 -s   write to a temporary image on top, which is gone at the end
 -C   copy what is read from a backing image
 -i   how requests are carried out: threads, native or io_uring
 -k   like -i native
`,
  },
  {
    name: 'quit',
    short: 'q',
    minWords: 0,
    maxWords: 0,
    words: '',
    oneLine: 'exit the program',
    needsImage: false,
    run: manage.quit,
  },
  {
    name: 'read',
    short: 'r',
    minWords: 2,
    maxWords: -1,
    words: '[-abCqv] [-P pattern [-s off] [-l len]] off len',
    oneLine: 'reads a number of bytes at a specified offset',
    needsImage: true,
    run: requests.read,
    help: `
 Reads a range; sizes take the suffixes k, M, G, T, P, E.
${SHARED_FLAGS} -b   read from the state of the virtual machine
 -P   compare what was read with this byte
 -s   with -P: start comparing here
 -l   with -P: compare so many bytes
 -v   print what was read
`,
  },
  {
    name: 'readv',
    minWords: 2,
    maxWords: -1,
    words: '[-Cqv] [-P pattern] off len [len..]',
    oneLine: 'reads a number of bytes at a specified offset',
    needsImage: true,
    run: requests.readv,
    help: `
 Reads into one buffer for each length, one behind the other.
${SHARED_FLAGS} -P   compare what was read with this byte
 -v   print what was read
`,
  },
  {
    name: 'remove_break',
    minWords: 1,
    maxWords: 1,
    words: 'tag',
    oneLine: 'remove a breakpoint by tag',
    needsImage: true,
    run: breakpoints.remove,
  },
  {
    name: 'reopen',
    minWords: 0,
    maxWords: -1,
    words: '[(-r|-w)] [-c cache] [-o options]',
    oneLine: 'reopens an image with new options',
    needsImage: true,
    run: reopen,
    help: `
 Opens the image again with other options.
 -r   read-only
 -w   read-write
 -c   cache mode
 -o   options of the image's node
`,
  },
  {
    name: 'resume',
    minWords: 1,
    maxWords: 1,
    words: 'tag',
    oneLine: 'resumes the request tagged as tag',
    needsImage: true,
    run: breakpoints.resume,
  },
  {
    name: 'sigraise',
    minWords: 1,
    maxWords: 1,
    words: 'signal',
    oneLine: 'raises a signal',
    needsImage: false,
    run: manage.sigraise,
  },
  {
    name: 'sleep',
    minWords: 1,
    maxWords: 1,
    words: '',
    oneLine: 'waits for the given value in milliseconds',
    needsImage: false,
    run: manage.sleep,
  },
  {
    name: 'truncate',
    short: 't',
    minWords: 1,
    maxWords: 3,
    words: '[-m prealloc_mode] off',
    oneLine: 'truncates the current file at the given offset',
    needsImage: true,
    run: status.truncate,
  },
  {
    name: 'wait_break',
    minWords: 1,
    maxWords: 1,
    words: 'tag',
    oneLine: 'waits for the suspension of a request',
    needsImage: true,
    run: breakpoints.waitFor,
  },
  {
    name: 'write',
    short: 'w',
    minWords: 2,
    maxWords: -1,
    words: '[-bcCfnquz] [-P pattern | -s source_file] off len',
    oneLine: 'writes a number of bytes at a specified offset',
    needsImage: true,
    run: requests.write,
    help: `
 Writes a range, filled with 0xcd unless told otherwise; sizes take the suffixes k, M, G, T, P, E.
${SHARED_FLAGS} -b   write to the state of the virtual machine
 -c   write compressed
 -f   the data is on stable storage afterwards (FUA)
 -n   with -z: fail rather than write zeroes as data
 -P   write this byte
 -s   write what this file holds, over and over
 -u   with -z: the range may be unmapped
 -z   write zeroes without sending data
`,
  },
  {
    name: 'writev',
    minWords: 2,
    maxWords: -1,
    words: '[-Cfq] [-P pattern] off len [len..]',
    oneLine: 'writes a number of bytes at a specified offset',
    needsImage: true,
    run: requests.writev,
    help: `
 Writes one buffer for each length, one behind the other.
${SHARED_FLAGS} -f   the data is on stable storage afterwards (FUA)
 -P   write this byte (default: 0xcd)
`,
  },
];

export function findCommand(name: string): IoCommand | undefined {
  return COMMANDS.find((command) => command.name === name || command.short === name);
}

/** "NAME ARGUMENTS -- WHAT IT DOES". */
export function oneLine({ name, words, oneLine: what }: IoCommand): string {
  return `${name}${words === '' ? '' : words === ' ' ? ' ' : ` ${words}`} -- ${what}\n`;
}

async function showHelp({ env }: IoSession, words: readonly string[]): Promise<void> {
  const [name] = words;
  if (name === undefined) {
    for (const command of COMMANDS) env.output.print(oneLine(command));
    env.output.print("\nUse 'help commandname' for extended help.\n");
    return;
  }
  const command = findCommand(name);
  if (command === undefined) {
    env.output.print(`command ${name} not found\n`);
    throw new CommandFailed();
  }
  env.output.print(oneLine(command));
  if (command.help !== undefined) env.output.print(`${command.help}\n`);
}
