/** The command line of qblock-nbd: options, their checks in the original's words, and the help. */

import { PACKAGE_VERSION } from '../../qmp/version.ts';
import { commandHelp } from '../common/command-table.ts';
import { type CacheMode, cacheMode } from '../common/environment.ts';
import { createGetopt } from '../common/getopt.ts';
import { setErrorFormat, type ToolOutput } from '../common/output.ts';
import { PROGRAM } from './table.ts';

export class OptionProblem extends Error {}
/** Nothing is left to do. */
export class Finished {
  readonly status: number;

  constructor(status: number) {
    this.status = status;
  }
}

export interface NbdOptions {
  readonly mode: 'serve' | 'list' | 'connect' | 'disconnect';
  readonly file: string | null;
  readonly device: string | null;
  readonly port: string;
  readonly bind: string;
  readonly socket: string | null;
  readonly shared: number;
  readonly persistent: boolean;
  readonly verbose: boolean;
  readonly exportName: string;
  readonly description: string | null;
  readonly offset: number;
  readonly allocationDepth: boolean;
  readonly bitmaps: readonly string[];
  readonly objects: readonly string[];
  readonly tlsCreds: string | null;
  readonly tlsAuthz: string | null;
  readonly tlsHostname: string | null;
  readonly fork: boolean;
  readonly pidFile: string | null;
  readonly handshakeSeconds: number;
  readonly format: string | null;
  readonly readOnly: boolean;
  readonly snapshot: boolean;
  readonly loadSnapshot: string | null;
  readonly cache: CacheMode;
  readonly aio: string | null;
  readonly unmap: boolean;
  readonly detectZeroes: 'off' | 'on' | 'unmap';
  readonly imageOpts: boolean;
  readonly untrusted: boolean;
}

type Name = keyof typeof PROGRAM.options;

/** Reads the command line; throws OptionProblem, or Finished when help was all that was asked for. */
export function readCommandLine(output: ToolOutput, words: readonly string[]): NbdOptions {
  const { program } = output;
  const values = new Map<Name, string>();
  const bitmaps: string[] = [];
  const objects: string[] = [];
  const getopt = createGetopt(words, PROGRAM.options, { program });
  for (let item = getopt.next(); item !== null; item = getopt.next()) {
    if (item.kind === 'error') {
      output.note(`${program}: ${item.message}\n`);
      throw new OptionProblem(`Try \`${program} --help' for more information.`);
    }
    const { name, value } = item;
    if (name === 'help' || name === 'version') {
      output.print(
        name === 'help' ? commandHelp(program, PROGRAM) : `${program} version ${PACKAGE_VERSION}\n`,
      );
      throw new Finished(0);
    }
    if ((name === 'cache' || name === 'nocache') && (values.has('cache') || values.has('nocache')))
      throw new OptionProblem('-n and --cache can only be specified once');
    if (name === 'aio' && values.has('aio')) throw new OptionProblem('--aio can only be specified once');
    // It must stand in front.
    if (
      name === 'detectZeroes' &&
      value === 'unmap' &&
      !['unmap', 'on'].includes(values.get('discard') ?? '')
    )
      throw new OptionProblem(
        'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
      );
    if (name === 'errorFormat') setErrorFormat(output, value);
    checkValue(name, value);
    if (name === 'bitmap') bitmaps.push(value);
    else if (name === 'object') objects.push(value);
    else values.set(name, value);
  }
  const mode = modeOf(values, getopt.operands, bitmaps, output);
  const [file = null] = getopt.operands;
  const text = (name: Name): string | null => values.get(name) ?? null;
  const port = values.get('port') ?? '10809';
  const bind = values.get('bind') ?? '0.0.0.0';
  if (!/^\d+$/.test(port) && !values.has('socket'))
    throw new OptionProblem(
      `address resolution failed for ${bind}:${port}: Servname not supported for ai_socktype`,
    );
  const discard = values.get('discard') ?? 'ignore';
  const detectZeroes = (values.get('detectZeroes') ?? 'off') as NbdOptions['detectZeroes'];
  const unmap = discard === 'unmap' || discard === 'on';
  return {
    mode,
    file: mode === 'disconnect' ? null : file,
    device: mode === 'disconnect' ? file : text('connect'),
    port,
    bind,
    socket: text('socket'),
    shared: Number(values.get('shared') ?? '1'),
    persistent: values.has('persistent'),
    verbose: values.has('verbose'),
    exportName: values.get('exportName') ?? '',
    description: text('description'),
    offset: Number(values.get('offset') ?? '0'),
    allocationDepth: values.has('allocationDepth'),
    bitmaps,
    objects,
    tlsCreds: text('tlsCreds'),
    tlsAuthz: text('tlsAuthz'),
    tlsHostname: text('tlsHostname'),
    fork: values.has('fork'),
    pidFile: text('pidFile'),
    handshakeSeconds: Number(values.get('handshakeLimit') ?? '10'),
    format: text('format'),
    readOnly: values.has('readOnly') || values.has('loadSnapshot'),
    snapshot: values.has('snapshot'),
    loadSnapshot: text('loadSnapshot'),
    cache: cacheMode(values.has('nocache') ? 'none' : (values.get('cache') ?? 'writeback'))!,
    aio: text('aio'),
    unmap,
    detectZeroes,
    imageOpts: values.has('imageOpts'),
    untrusted: values.has('untrusted'),
  };
}

function checkValue(name: Name, value: string): void {
  const refuse = (text: string): never => {
    throw new OptionProblem(text);
  };
  if (name === 'cache' && cacheMode(value) === null) refuse(`Invalid cache mode \`${value}'`);
  if (name === 'aio' && !['native', 'io_uring', 'threads'].includes(value))
    refuse(`Invalid aio mode '${value}'`);
  if (name === 'discard' && !['ignore', 'off', 'unmap', 'on'].includes(value))
    refuse(`Invalid discard mode \`${value}'`);
  if (name === 'detectZeroes' && !['off', 'on', 'unmap'].includes(value))
    refuse(`Failed to parse detect_zeroes mode: invalid parameter value: ${value}`);
  if (name === 'socket' && !value.startsWith('/')) refuse('socket path must be absolute');
  if (name === 'shared' && !isWhole(value, 2 ** 31 - 1)) refuse(`Invalid shared device number '${value}'`);
  if (name === 'offset' && !isWhole(value, Number.MAX_SAFE_INTEGER)) refuse(`Invalid offset '${value}'`);
  if (name === 'handshakeLimit' && !isWhole(value, 2 ** 32 - 1)) refuse(`Invalid handshake limit '${value}'`);
  if (name === 'description' && Buffer.byteLength(value) > 4096) refuse('export description too long');
  if (name === 'exportName' && Buffer.byteLength(value) > 4096) refuse('export name too long');
  if (name === 'selinuxLabel') refuse('SELinux support not enabled in this binary');
}

function isWhole(text: string, max: number): boolean {
  return /^(0x[0-9a-f]+|\d+)$/i.test(text) && Number(text) <= max;
}

function modeOf(
  values: ReadonlyMap<Name, string>,
  operands: readonly string[],
  bitmaps: readonly string[],
  { program }: ToolOutput,
): NbdOptions['mode'] {
  if (values.has('list')) {
    const perDevice: readonly Name[] = [
      ...([
        'exportName',
        'description',
        'offset',
        'allocationDepth',
        'format',
        'readOnly',
        'snapshot',
      ] as const),
      ...([
        'loadSnapshot',
        'nocache',
        'cache',
        'aio',
        'discard',
        'detectZeroes',
        'shared',
        'persistent',
      ] as const),
    ];
    if (operands.length > 0) throw new OptionProblem('List mode is incompatible with a file name');
    if (bitmaps.length > 0 || perDevice.some((name) => values.has(name)))
      throw new OptionProblem('List mode is incompatible with per-device settings');
    if (values.has('connect') || values.has('disconnect') || values.has('fork') || values.has('pidFile'))
      throw new OptionProblem('List mode is incompatible with per-device settings');
    return 'list';
  }
  if (operands.length !== 1)
    throw new OptionProblem(`Invalid number of arguments\nTry \`${program} --help' for more information.`);
  if (values.has('imageOpts') && values.has('format'))
    throw new OptionProblem('--image-opts and -f are mutually exclusive');
  if (values.has('tlsCreds') && values.has('connect'))
    throw new OptionProblem('TLS is not supported with a host device');
  if (values.has('tlsAuthz') && !values.has('tlsCreds'))
    throw new OptionProblem('--tls-authz is not permitted without --tls-creds');
  if (values.has('tlsHostname') && !values.has('tlsCreds'))
    throw new OptionProblem('--tls-hostname is not permitted without --tls-creds');
  if (values.has('disconnect')) return 'disconnect';
  return values.has('connect') ? 'connect' : 'serve';
}
