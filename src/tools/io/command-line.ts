/** The command line of qblock-io: options, what they mean, and the help. */

import { PACKAGE_VERSION } from '../../qmp/version.ts';
import { commandHelp } from '../common/command-table.ts';
import { addObject, cacheMode, type ToolEnvironment } from '../common/environment.ts';
import { createGetopt } from '../common/getopt.ts';
import { setErrorFormat } from '../common/output.ts';
import { isDiscardMode, textOptions, unmaps } from './definition.ts';
import { AIO_MODES } from './manage.ts';
import type { OpenSettings } from './session.ts';
import { PROGRAM } from './table.ts';

const usage = (program: string): string => commandHelp(program, PROGRAM);

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

type OptionName = keyof typeof PROGRAM.options;

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
  const getopt = createGetopt(words, PROGRAM.options, { program: output.program });
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
    case 'errorFormat':
      setErrorFormat(output, value);
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
      if (!AIO_MODES.includes(value)) return refuse(`Invalid aio option: ${value}`);
      // -k is not taken back.
      if (values.has('nativeAio')) values.set('aio', 'native');
      return null;
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
