/** The program: finds the sub-command, runs it, and turns how it ended into messages and an exit status. */

import type { ToolEnvironment } from '../common/environment.ts';
import { createGetopt } from '../common/getopt.ts';
import { setErrorFormat, type ToolOutput } from '../common/output.ts';
import { runProgram } from '../common/program.ts';
import { EarlyExit, type ImgCommand, optionError, UsageError } from './common/command.ts';
import { STANDARD_OPTIONS } from './tables/shared.ts';

/** Each loads its command: a tool that runs for the blink of an eye loads no more than it needs. */
const COMMANDS: Readonly<Record<string, () => Promise<ImgCommand>>> = {
  amend: async () => (await import('./amend.ts')).amend,
  bench: async () => (await import('./bench.ts')).bench,
  bitmap: async () => (await import('./bitmap.ts')).bitmap,
  check: async () => (await import('./check.ts')).check,
  commit: async () => (await import('./chain/commit.ts')).commit,
  compare: async () => (await import('./compare.ts')).compare,
  convert: async () => (await import('./convert/convert.ts')).convert,
  create: async () => (await import('./create.ts')).create,
  dd: async () => (await import('./dd.ts')).dd,
  info: async () => (await import('./info.ts')).info,
  map: async () => (await import('./map.ts')).map,
  measure: async () => (await import('./measure.ts')).measure,
  rebase: async () => (await import('./chain/rebase.ts')).rebase,
  resize: async () => (await import('./resize.ts')).resize,
  snapshot: async () => (await import('./snapshot.ts')).snapshot,
};

async function run(
  words: readonly string[],
  output: ToolOutput,
  environment: () => ToolEnvironment,
): Promise<number> {
  if (words.length === 0) throw new UsageError('Not enough arguments');
  const getopt = createGetopt(words, STANDARD_OPTIONS, { program: output.program, stopAtOperand: true });
  for (let item = getopt.next(); item !== null; item = getopt.next()) {
    if (item.kind === 'error') throw optionError(item.problem, item.word);
    if (item.name === 'help') {
      output.print((await import('./common/help.ts')).usage(output.program));
      return 0;
    }
    if (item.name === 'version') {
      output.print((await import('./common/help.ts')).versionText(output.program));
      return 0;
    }
    if (item.name === 'errorFormat') setErrorFormat(output, item.value);
    else if (!/[*?=,]/.test(item.value)) output.warn(`trace event '${item.value}' does not exist`);
  }
  const [name, ...rest] = getopt.operands;
  if (name === undefined) throw new UsageError('Not enough arguments');
  const command = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  output.command = name;
  if (command !== undefined) return (await command())({ output, environment }, rest);
  throw new UsageError(`Command not found: ${name}`);
}

/** The exit status for what a command threw; its message is printed. */
function failureStatus(error: unknown, output: ToolOutput): number {
  if (error instanceof EarlyExit) return error.status;
  if (error instanceof UsageError)
    output.error(`${error.message}\nTry '${output.program} --help' for more information`);
  else output.error(error);
  return 1;
}

void runProgram('qblock-img', run, failureStatus);
