/** qblock-io: exercises an image by commands, from -c or from standard input. */

import { createInterface } from 'node:readline';
import { BlockError } from '../../errors/error.ts';
import { PACKAGE_VERSION } from '../../qmp/version.ts';
import { addObject, cacheMode, createEnvironment } from '../common/environment.ts';
import { createGetopt } from '../common/getopt.ts';
import { createToolOutput } from '../common/output.ts';
import { findCommand, oneLine } from './commands.ts';
import { isDiscardMode, openWith } from './manage.ts';
import { aioFlush } from './requests.ts';
import { CommandFailed, type IoSession, UsageProblem } from './session.ts';

const PROGRAM = 'qblock-io';

const OPTIONS = {
  object: { long: 'object', argument: true },
  imageOpts: { long: 'image-opts', argument: false },
  cmd: { long: 'cmd', short: 'c', argument: true },
  format: { long: 'format', short: 'f', argument: true },
  readOnly: { long: 'read-only', short: 'r', argument: false },
  snapshot: { long: 'snapshot', short: 's', argument: false },
  nocache: { long: 'nocache', short: 'n', argument: false },
  copyOnRead: { long: 'copy-on-read', short: 'C', argument: false },
  misalign: { long: 'misalign', short: 'm', argument: false },
  nativeAio: { long: 'native-aio', short: 'k', argument: false },
  aio: { long: 'aio', short: 'i', argument: true },
  cache: { long: 'cache', short: 't', argument: true },
  discard: { long: 'discard', short: 'd', argument: true },
  trace: { long: 'trace', short: 'T', argument: true },
  forceShare: { long: 'force-share', short: 'U', argument: false },
  help: { long: 'help', short: 'h', argument: false },
  version: { long: 'version', short: 'V', argument: false },
} as const;

const USAGE = `Usage: ${PROGRAM} [OPTIONS]... [-c COMMAND]... [FILE]
Reads, writes and inspects a disk image by commands.

      --object DEFINITION  add an object, such as a secret with a passphrase
      --image-opts         FILE is a list of options, not a name
  -c, --cmd COMMAND        run a command; may be given more than once
  -f, --format FORMAT      format of the image (default: found out by probing)
  -r, --read-only          open read-only
  -n, --nocache            without the page cache, like -t none
  -m, --misalign           use buffers that are not aligned
  -i, --aio MODE           threads, native or io_uring
  -k, --native-aio         like -i native
  -t, --cache MODE         none, writeback, writethrough, directsync or unsafe
  -d, --discard MODE       ignore or unmap
  -U, --force-share        let other processes write to the image meanwhile
  -T, --trace SPEC         taken and without effect
  -h, --help               print this help
  -V, --version            print the version

'${PROGRAM} -c help' lists the commands.
`;

/** Commands that need a writable image; said before their arguments are looked at. */
const WRITERS: ReadonlySet<string> = new Set(['write', 'writev', 'aio_write', 'discard', 'truncate']);

/** Runs one line; what is wrong with it is printed and makes the exit status 1. */
async function runLine(session: IoSession, line: string): Promise<void> {
  const [name, ...words] = line.split(/[ ]+/).filter((word) => word !== '');
  if (name === undefined) return;
  const { output } = session.env;
  const command = findCommand(name);
  try {
    if (command === undefined) {
      output.note(`command "${name}" not found\n`);
      throw new CommandFailed();
    }
    if (command.needsImage && session.image === null) {
      output.note("no file open, try 'help open'\n");
      throw new CommandFailed();
    }
    checkCount(session, name, words.length, command.minWords, command.maxWords);
    if (WRITERS.has(command.name) && session.image?.node.readOnly === true) {
      output.error('Block node is read-only');
      throw new CommandFailed();
    }
    await command.run(session, words);
  } catch (error) {
    session.failed = true;
    if (error instanceof UsageProblem && command !== undefined) output.print(oneLine(command));
    else if (!(error instanceof CommandFailed)) output.error(error);
  }
}

function checkCount({ env }: IoSession, name: string, count: number, min: number, max: number): void {
  if (count >= min && (max === -1 || count <= max)) return;
  const expected =
    max === -1
      ? `at least ${min} arguments`
      : min === max
        ? `${min} arguments`
        : `between ${min} and ${max} arguments`;
  env.output.note(`bad argument count ${count} to ${name}, expected ${expected}\n`);
  throw new CommandFailed();
}

async function runInput(session: IoSession): Promise<void> {
  const { output } = session.env;
  const lines = createInterface({ input: process.stdin, terminal: false });
  const prompt = (): void => {
    output.print(`${PROGRAM}> `);
    output.flush();
  };
  prompt();
  for await (const line of lines) {
    await runLine(session, line);
    if (session.ended) break;
    prompt();
  }
}

/** Runs the tool; returns the exit status. */
export async function main(words: readonly string[]): Promise<number> {
  const output = createToolOutput(PROGRAM);
  const env = createEnvironment(output);
  const commands: string[] = [];
  const settings = {
    imageOpts: false,
    format: null as string | null,
    readOnly: false,
    forceShare: false,
    cache: 'writeback',
    discard: 'unmap',
    aio: null as string | null,
    misalign: false,
  };
  const refuse = (text: string): number => {
    output.error(text);
    return 1;
  };
  let status: number | null = null;
  const session: IoSession = {
    env,
    image: null,
    opened: null,
    misalign: words.includes('-m') || words.includes('--misalign'),
    pending: new Set(),
    failed: false,
    ended: false,
  };
  try {
    const getopt = createGetopt(words, OPTIONS, { program: PROGRAM });
    for (let item = getopt.next(); item !== null && status === null; item = getopt.next()) {
      if (item.kind === 'error') {
        output.note(`${PROGRAM}: ${item.message}\n`);
        output.print(USAGE);
        status = 1;
        break;
      }
      const { value } = item;
      switch (item.name) {
        case 'object':
          if (await addObject(env, value)) status = 0;
          break;
        case 'imageOpts':
          settings.imageOpts = true;
          break;
        case 'cmd':
          commands.push(value);
          break;
        case 'format':
          settings.format = value;
          break;
        case 'readOnly':
          settings.readOnly = true;
          break;
        case 'nocache':
          settings.cache = 'none';
          break;
        case 'nativeAio':
          settings.aio = 'native';
          break;
        case 'aio':
          if (!['threads', 'native', 'io_uring'].includes(value))
            status = refuse(`Invalid aio option: ${value}`);
          settings.aio = value;
          break;
        case 'cache':
          if (cacheMode(value) === null) status = refuse(`Invalid cache option: ${value}`);
          settings.cache = value;
          break;
        case 'discard':
          if (!isDiscardMode(value)) status = refuse(`Invalid discard option: ${value}`);
          settings.discard = value;
          break;
        case 'forceShare':
          settings.forceShare = true;
          break;
        case 'snapshot':
        case 'copyOnRead':
          status = refuse(`--${item.name === 'snapshot' ? 'snapshot' : 'copy-on-read'} is not supported yet`);
          break;
        case 'help':
          output.print(USAGE);
          status = 0;
          break;
        case 'version':
          output.print(`${PROGRAM} version ${PACKAGE_VERSION}\n`);
          status = 0;
          break;
        default:
          break;
      }
    }
    if (status !== null) return status;
    if (getopt.operands.length > 1) {
      output.print(USAGE);
      return 1;
    }
    if (settings.format !== null && settings.imageOpts)
      return refuse('--image-opts and -f are mutually exclusive');
    const [name] = getopt.operands;
    if (name !== undefined) {
      try {
        await openWith(session, {
          name,
          imageOpts: settings.imageOpts,
          format: settings.format,
          readOnly: settings.readOnly,
          forceShare: settings.forceShare,
          cache: settings.cache,
          unmap: settings.discard === 'unmap' || settings.discard === 'on',
          options: {},
        });
      } catch (error) {
        if (error instanceof CommandFailed) return 1;
        throw error;
      }
    }
    if (commands.length === 0) await runInput(session);
    for (const command of commands) {
      if (session.ended) break;
      await runLine(session, command);
    }
    await aioFlush(session);
    if (session.image !== null) await session.image.close();
    session.image = null;
    return session.failed ? 1 : 0;
  } catch (error) {
    output.error(error instanceof BlockError || error instanceof Error ? error : String(error));
    return 1;
  } finally {
    await env.close().catch((error: unknown) => output.error(error));
    output.flush();
  }
}
