/** The command line of qblock-io: options, what they mean, and the help. */

import { PACKAGE_VERSION } from '../../qmp/version.ts';
import { addObject, cacheMode, type ToolEnvironment } from '../common/environment.ts';
import { createGetopt } from '../common/getopt.ts';
import { isDiscardMode, textOptions, unmaps } from './definition.ts';
import { AIO_MODES } from './manage.ts';
import type { OpenSettings } from './session.ts';

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
  untrusted: { long: 'untrusted', argument: false },
  help: { long: 'help', short: 'h', argument: false },
  version: { long: 'version', short: 'V', argument: false },
} as const;

const usage = (program: string): string => `Usage: ${program} [OPTIONS]... [-c COMMAND]... [FILE]
Reads, writes and inspects a disk image by commands.

      --object DEFINITION  add an object, such as a secret with a passphrase
      --image-opts         FILE is a list of options, not a name
  -c, --cmd COMMAND        run a command; may be given more than once
  -f, --format FORMAT      format of the image (default: found out by probing)
  -r, --read-only          open read-only
  -s, --snapshot           write to a temporary image, which is gone at the end
  -n, --nocache            without the page cache, like -t none
  -C, --copy-on-read       copy what is read from a backing image
  -m, --misalign           use buffers that are not aligned
  -i, --aio MODE           threads, native or io_uring
  -k, --native-aio         like -i native
  -t, --cache MODE         none, writeback, writethrough, directsync or unsafe
  -d, --discard MODE       ignore or unmap
  -U, --force-share        let other processes write to the image meanwhile
      --untrusted          the image opens no other file; -f is needed
  -T, --trace SPEC         taken and without effect
  -h, --help               print this help
  -V, --version            print the version

'${program} -c help' lists the commands.
`;

/** What to do: end at once with a status, or run commands. */
export type Invocation =
  | { readonly kind: 'end'; readonly status: number }
  | {
      readonly kind: 'run';
      readonly commands: readonly string[];
      readonly misalign: boolean;
      /** The image to begin with. */
      readonly image: OpenSettings | null;
    };

type OptionName = keyof typeof OPTIONS;

/** The last value of every option but those that add up. */
interface Given {
  readonly values: Map<OptionName, string>;
  readonly commands: string[];
}

const end = (status: number): Invocation => ({ kind: 'end', status });

/** Reads the command line; mistakes are printed. */
export async function readCommandLine(env: ToolEnvironment, words: readonly string[]): Promise<Invocation> {
  const { output } = env;
  const given: Given = { values: new Map(), commands: [] };
  const getopt = createGetopt(words, OPTIONS, { program: output.program });
  for (let item = getopt.next(); item !== null; item = getopt.next()) {
    if (item.kind === 'error') {
      output.note(`${output.program}: ${item.message}\n`);
      output.print(usage(output.program));
      return end(1);
    }
    const status = await take(env, given, item.name, item.value);
    if (status !== null) return end(status);
  }
  if (getopt.operands.length > 1) {
    output.print(usage(output.program));
    return end(1);
  }
  const { values, commands } = given;
  if (values.has('format') && values.has('imageOpts')) {
    output.error('--image-opts and -f are mutually exclusive');
    return end(1);
  }
  const [name] = getopt.operands;
  const image = name === undefined ? null : imageSettings(env, name, values);
  return { kind: 'run', commands, misalign: values.has('misalign'), image };
}

/** Takes one option; the exit status when the program ends there. */
async function take(
  env: ToolEnvironment,
  { values, commands }: Given,
  name: OptionName,
  value: string,
): Promise<number | null> {
  const { output } = env;
  const refuse = (text: string): number => {
    output.error(text);
    return 1;
  };
  values.set(name, value);
  switch (name) {
    case 'object':
      return (await addObject(env, value)) ? 0 : null;
    case 'cmd':
      commands.push(value);
      return null;
    case 'untrusted':
      env.untrusted = true;
      return null;
    case 'nocache':
      values.set('cache', 'none');
      return null;
    case 'nativeAio':
      values.set('aio', 'native');
      return null;
    case 'aio':
      return AIO_MODES.includes(value) ? null : refuse(`Invalid aio option: ${value}`);
    case 'cache':
      return cacheMode(value) === null ? refuse(`Invalid cache option: ${value}`) : null;
    case 'discard':
      return isDiscardMode(value) ? null : refuse(`Invalid discard option: ${value}`);
    case 'trace':
      if (!/[*?=,]/.test(value)) output.warn(`trace event '${value}' does not exist`);
      return null;
    case 'help':
      output.print(usage(output.program));
      return 0;
    case 'version':
      output.print(`${output.program} version ${PACKAGE_VERSION}\n`);
      return 0;
    default:
      return null;
  }
}

function imageSettings(
  { output }: ToolEnvironment,
  name: string,
  values: ReadonlyMap<OptionName, string>,
): OpenSettings {
  const isDescribed = values.has('imageOpts');
  const { options } = textOptions(isDescribed ? name : '', (text) => output.warn(text));
  return {
    name: isDescribed ? null : name,
    format: values.get('format') ?? null,
    readOnly: values.has('readOnly'),
    forceShare: values.has('forceShare'),
    cache: values.get('cache') ?? 'writethrough',
    unmap: unmaps(values.get('discard') ?? 'unmap'),
    aio: values.get('aio') ?? null,
    snapshot: values.has('snapshot'),
    copyOnRead: values.has('copyOnRead'),
    options,
  };
}
