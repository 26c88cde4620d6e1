/**
 * The options of the command line and how they are read: getopt_long(3)'s rules, so that what a script passes to the
 * original means the same here. Long options may be shortened as long as they stay unambiguous, may have one dash or
 * two, and take their argument after "=" or as the next word.
 *
 * Not here: what the options do (command-line.ts).
 */

/** Long options; `short`: the letter that means the same. */
export const OPTIONS = {
  help: {
    argument: false,
    short: 'h',
    forms: [''],
    text: 'print this help and exit',
  },
  trace: {
    argument: true,
    short: 'T',
    forms: ['[[enable=]<pattern>][,events=<file>][,file=<file>]'],
    text: 'write a line for each event that fits the pattern, to standard error or a file; a file of events has a pattern a line; help: list the events',
  },
  version: { argument: false, short: 'V', forms: [''], text: 'print the version and exit' },
  blockdev: {
    argument: true,
    forms: [
      '[driver=]<driver>[,node-name=<name>][,discard=ignore|unmap][,cache.direct=on|off][,cache.no-flush=on|off][,read-only=on|off][,auto-read-only=on|off][,force-share=on|off][,detect-zeroes=on|off|unmap][,untrusted=on|off][,<option of the driver>=<value>...]',
    ],
    text: 'open a block node',
  },
  chardev: {
    argument: true,
    forms: ['<type>,id=<id>[,<option>=<value>...]'],
    text: 'make a character device, such as socket,id=c,path=<path>,server=on,wait=off for a monitor',
  },
  config: {
    argument: true,
    ours: true,
    forms: ['<path>'],
    text: 'carry out a configuration file (YAML or JSON), or all those of a folder in the order of their names; the members object, chardev, blockdev, nbd-server, export, monitor, qmp and metrics hold what the options of these names take',
    completes: 'file',
  },
  daemonize: {
    argument: false,
    forms: [''],
    text: 'go on in the background; the command ends when everything has started',
  },
  'dump-file': {
    argument: true,
    ours: true,
    forms: ['<path>'],
    text: 'where SIGUSR2 adds what the daemon is doing at that moment: nodes, requests under way, jobs, clients, memory (default: the log)',
    completes: 'file',
  },
  embedded: {
    argument: true,
    ours: true,
    forms: ['<dir>'],
    text: 'serve a disk kept in <dir> over NBD, with QMP on a UNIX socket in <dir> and on a WebSocket',
    completes: 'directory',
  },
  engine: {
    argument: true,
    ours: true,
    forms: ['auto|io_uring|threads'],
    text: 'choose the engine for asynchronous I/O',
  },
  export: {
    argument: true,
    forms: [
      '[type=]nbd,id=<id>,node-name=<node>[,name=<export>][,writable=on|off][,bitmap=<name>][,bitmaps.0=<name>...][,allocation-depth=on|off][,description=<text>]',
      '[type=]fuse,id=<id>,node-name=<node>,mountpoint=<file>[,growable=on|off][,writable=on|off][,allow-other=on|off|auto]',
      '[type=]vhost-user-blk,id=<id>,node-name=<node>,addr.type=unix,addr.path=<path>[,writable=on|off][,logical-block-size=<bytes>][,num-queues=<n>]',
      '[type=]vhost-user-blk,id=<id>,node-name=<node>,addr.type=fd,addr.str=<fd>[,writable=on|off][,logical-block-size=<bytes>][,num-queues=<n>]',
    ],
    text: 'export a node: over NBD (needs --nbd-server), as a file through FUSE, or to a virtual machine as a vhost-user-blk device',
  },
  'log-file': {
    argument: true,
    ours: true,
    forms: ['<path>'],
    text: 'add the log to a file instead of writing it to standard error, which --daemonize leaves behind',
    completes: 'file',
  },
  'log-level': {
    argument: true,
    ours: true,
    forms: ['trace|debug|info|warn|error|fatal|silent'],
    text: 'least severe messages that are logged (default: warn); info: who connects, debug: every QMP command',
  },
  metrics: {
    argument: true,
    ours: true,
    forms: ['<host>:<port>[,token=<token>][,token-file=<path>][,remote=on|off]'],
    text: 'serve metrics to Prometheus: GET /metrics, with the token as Bearer or as ?token=',
  },
  monitor: {
    argument: true,
    forms: ['[chardev=]<id>[,mode=control][,pretty[=on|off]]'],
    text: 'serve QMP on a character device',
  },
  'nbd-server': {
    argument: true,
    forms: [
      'addr.type=inet,addr.host=<host>,addr.port=<port>[,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>][,handshake-max-seconds=<n>]',
      'addr.type=unix,addr.path=<path>[,tls-creds=<id>][,tls-authz=<id>][,max-connections=<n>][,handshake-max-seconds=<n>]',
    ],
    text: 'start the NBD server that NBD exports are served by',
  },
  object: {
    argument: true,
    forms: ['help', '<type>,help', '<type>,id=<id>[,<property>=<value>...]'],
    text: 'list the types of objects; list the properties of one; make an object',
  },
  pidfile: {
    argument: true,
    forms: ['<path>'],
    text: 'write the process ID to a file when everything has started',
    completes: 'file',
  },
  qmp: {
    argument: true,
    ours: true,
    forms: [
      'unix:<path>|tcp:<host>:<port>|stdio[,pretty=on|off]',
      'ws:<host>:<port>[,token=<token>][,token-file=<path>][,remote=on|off][,pretty=on|off]',
      'fd:<name>|ws-fd:<name>[,...]',
    ],
    text: 'serve QMP to several clients at once; ws: and the console to browsers; fd, ws-fd: on a socket that the service manager has passed under that name (also --nbd-server addr.type=fd,addr.str=<name>)',
  },
  restore: {
    argument: true,
    ours: true,
    forms: ['<file>'],
    text: 'carry out the configuration that --save has kept in <file>, if there is one; nodes, NBD server and exports of --config are left out then',
    completes: 'file',
  },
  save: {
    argument: true,
    ours: true,
    forms: ['<file>'],
    text: 'keep the running objects, block nodes, NBD server and exports in <file>; a command is answered when its change is in there',
    completes: 'file',
  },
  'slow-requests': {
    argument: true,
    ours: true,
    forms: ['<milliseconds>'],
    text: 'log every request that takes longer, with the time it spent in each node on its way',
  },
} as const satisfies Record<string, Definition>;

export type OptionName = keyof typeof OPTIONS;

/** A word of the command line, understood. `text` is how it was written: it begins the messages about it. */
export type CommandLineItem =
  | { readonly kind: 'option'; readonly name: OptionName; readonly value: string; readonly text: string }
  | { readonly kind: 'operand'; readonly text: string };

/** The command line cannot be read; the message has no program name yet. */
export class UsageError extends Error {}

interface Definition {
  readonly argument: boolean;
  readonly short?: string;
  /** For help: what may stand behind the name. */
  readonly forms: readonly string[];
  /** For help: what the option does. */
  readonly text: string;
  /** The original does not have it: a beginning that fits one of its own means that. */
  readonly ours?: true;
  /** What shells offer for the argument, where it is a path. */
  readonly completes?: 'file' | 'directory';
}

const definitions: readonly (readonly [OptionName, Definition])[] = Object.entries(OPTIONS) as [
  OptionName,
  Definition,
][];

/** The option that `given` names in full or by an unambiguous beginning; null: none. */
function findLong(given: string, dashes: string): OptionName | null {
  const exact = definitions.find(([name]) => name === given);
  if (exact !== undefined) return exact[0];
  const begun = definitions.filter(([name]) => name.startsWith(given));
  const originals = begun.filter(([, { ours }]) => ours !== true);
  const candidates = originals.length > 0 ? originals : begun;
  if (candidates.length > 1) {
    const names = candidates.map(([name]) => `'--${name}'`).join(' ');
    throw new UsageError(`option '${dashes}${given}' is ambiguous; possibilities: ${names}`);
  }
  return candidates[0]?.[0] ?? null;
}

/** Reads the words after the program's name. After "--" nothing is read, as the original does. */
export function parseCommandLine(argv: readonly string[]): CommandLineItem[] {
  const items: CommandLineItem[] = [];
  for (let index = 0; index < argv.length && argv[index] !== '--'; index++) {
    const word = argv[index] ?? '';
    const next = argv[index + 1];
    const item = parseLong(word, next) ?? parseShort(word, next, items);
    items.push(item.item);
    if (item.usedNext) index++;
  }
  return items;
}

interface Parsed {
  readonly item: CommandLineItem;
  readonly usedNext: boolean;
}

function option(name: OptionName, value: string, text: string, usedNext = false): Parsed {
  return { item: { kind: 'option', name, value, text }, usedNext };
}

/** A long option; null when the word is none, or has one dash and is no long option. */
function parseLong(word: string, next: string | undefined): Parsed | null {
  const match = /^(--?)([^=-][^=]*)(=([\s\S]*))?$/.exec(word);
  if (match === null) return null;
  const [, dashes = '', given = '', withValue, value = ''] = match;
  // With one dash a single letter is a short option.
  if (dashes === '-' && given.length === 1) return null;
  const name = findLong(given, dashes);
  if (name === null) {
    if (dashes === '-' && definitions.some(([, { short }]) => short === given[0])) return null;
    if (dashes === '-') throw new UsageError(`invalid option -- '${given[0]}'`);
    throw new UsageError(`unrecognized option '--${given}'`);
  }
  if (!OPTIONS[name].argument) {
    if (withValue === undefined) return option(name, '', word);
    throw new UsageError(`option '${dashes}${name}' doesn't allow an argument`);
  }
  if (withValue !== undefined) return option(name, value, word);
  if (next === undefined) throw new UsageError(`option '${dashes}${name}' requires an argument`);
  return option(name, next, `${word} ${next}`, true);
}

/** Short options, which may be run together ("-hV": the first goes to `items`), or an operand. */
function parseShort(word: string, next: string | undefined, items: CommandLineItem[]): Parsed {
  if (!word.startsWith('-') || word === '-')
    return { item: { kind: 'operand', text: word }, usedNext: false };
  const letter = word[1] ?? '';
  const found = definitions.find(([, { short }]) => short === letter);
  if (found === undefined) throw new UsageError(`invalid option -- '${letter}'`);
  const [name, { argument }] = found;
  const rest = word.slice(2);
  if (!argument) {
    if (rest === '') return option(name, '', word);
    items.push(option(name, '', word).item);
    return parseShort(`-${rest}`, next, items);
  }
  if (rest !== '') return option(name, rest, word);
  if (next === undefined) throw new UsageError(`option requires an argument -- '${letter}'`);
  return option(name, next, `${word} ${next}`, true);
}
