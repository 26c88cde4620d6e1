/** The options of qblock-shell. */

import { type CommandTable, ERROR_FORMAT, HELP, VERSION } from '../common/command-table.ts';

export const PROGRAM = {
  name: 'qblock-shell',
  summary: 'Speaks QMP with a block daemon, as typed',
  operands: 'ADDRESS | -w PROGRAM [ARGUMENT...]',
  options: {
    help: HELP,
    version: VERSION,
    hmp: { short: 'H', long: 'hmp', argument: false, help: 'refused: there is no human monitor' },
    pretty: { short: 'p', long: 'pretty', argument: false, help: 'print answers over several lines' },
    verbose: { short: 'v', long: 'verbose', argument: false, help: 'print what is sent' },
    command: {
      short: 'c',
      long: 'command',
      argument: true,
      value: 'LINE',
      help: 'run this line, and end with status 1 when it fails; may be given more than once',
    },
    wrap: {
      short: 'w',
      long: 'wrap',
      argument: false,
      help: 'start the program (with --qmp) and end it in the end',
    },
    noEvents: { long: 'no-events', argument: false, help: 'do not show events' },
    errorFormat: ERROR_FORMAT,
  },
  notes: `ADDRESS is a socket's path, unix:PATH, HOST:PORT, tcp:HOST:PORT or
ws://HOST:PORT/?token=TOKEN.

Lines are COMMAND KEY=VALUE..., with dots for members (file.driver=file) and JSON
as values; or whole commands in JSON. "transaction(" begins a transaction, whose
actions follow line by line until ")". Tab completes commands, arguments and names;
"help" lists the commands, "help COMMAND" its arguments.
`,
} as const satisfies CommandTable;
