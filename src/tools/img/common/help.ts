/** The tool's help and version texts. */

import { drivers } from '../../../drivers/table.ts';
import { PACKAGE_VERSION, VERSION_INFO } from '../../../qmp/version.ts';
import { optionLines } from '../../common/command-table.ts';
import { TABLES } from '../tables/all.ts';
import { STANDARD_OPTIONS } from '../tables/shared.ts';

export function versionText(program: string): string {
  const { major, minor, micro } = VERSION_INFO.qemu;
  return `${program} version ${PACKAGE_VERSION} (options and output of qemu-img ${major}.${minor}.${micro})\n`;
}

/** What operands and arguments mean in every command, in lines of help. */
export const TERMS = `  FILE      a path, PROTOCOL:..., or json:{...}; with --image-opts the options of a
            block node, such as driver=qcow2,file.filename=disk
  FORMAT    format of an image
  CACHE     none, writeback, writethrough, directsync or unsafe
  SIZE      bytes, or with a suffix: k, M, G, T, P or E (powers of 1024)
  OPTIONS   NAME=VALUE,...; "-o help" lists those of the format
`;

export function usage(program: string): string {
  const commands = TABLES.map(({ name, summary }) => `  ${name.padEnd(10)}${summary}\n`).join('');
  return `${versionText(program)}usage: ${program} [standard options] command [command options]
Makes, converts, checks and describes disk images

Standard options:
${optionLines(STANDARD_OPTIONS)}
Commands ('${program} COMMAND --help' tells more):
${commands}
Arguments:
${TERMS}
Supported formats: ${Object.keys(drivers).sort().join(' ')}
`;
}
