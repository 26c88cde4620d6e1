/** A tool as a process: its words, the environment when one is needed, and how it ends. */

import path from 'node:path';
import { exitProcess } from '../../aio/host/exit.ts';
import { restoreWords } from '../../aio/host/names.ts';
import { errnoError } from '../../errors/error.ts';
import { createEnvironment, type ToolEnvironment } from './environment.ts';
import { createToolOutput, foreseeErrorFormat, type ToolOutput } from './output.ts';

/**
 * Runs a tool with the arguments of the process, which ends. `name`: what it is called when that cannot be told.
 * `run` resolves with the exit status; `failed` prints what it has thrown and says the status for that.
 */
export async function runProgram(
  name: string,
  run: (words: readonly string[], output: ToolOutput, environment: () => ToolEnvironment) => Promise<number>,
  failed: (error: unknown, output: ToolOutput) => number,
): Promise<void> {
  const output = createToolOutput(path.basename(process.argv[1] ?? name));
  let opened: ToolEnvironment | null = null;
  const environment = (): ToolEnvironment => {
    opened ??= createEnvironment(output);
    return opened;
  };
  let status: number;
  try {
    const words = restoreWords(process.argv.slice(2));
    foreseeErrorFormat(output, words);
    status = await run(words, output, environment);
  } catch (error) {
    status = failed(error, output);
  }
  try {
    await (opened as ToolEnvironment | null)?.close();
  } catch (error) {
    output.error(error);
    status ||= 1;
  }
  output.flush();
  // The original says nothing and succeeds: a script would take half a map for a whole one.
  if (output.lost() !== 0) {
    output.error(errnoError('standard output cannot be written', output.lost()));
    status ||= 1;
  }
  exitProcess(status);
}
