/** `help` in the shell: what can be typed, and the arguments of a command, told by the daemon's introspection. */

import type { Argument, Completer } from '../../../client/prompt/completion.ts';
import { LineError } from '../../../client/prompt/words.ts';
import { PROGRAM } from './table.ts';

/** The line asks for help; what for. No command of QMP has that name. */
export function helpAskedFor(line: string): string | null {
  const [, topic] = /^(?:help|\?)(?:\s+(.*))?$/.exec(line) ?? [];
  return topic === undefined && !/^(?:help|\?)$/.test(line) ? null : (topic ?? '').trim();
}

/** The text for `topic`: a command, with arguments that choose among others (`blockdev-add driver=qcow2`), or ''. */
export async function helpText(completer: Completer, topic: string): Promise<string> {
  if (topic === '') {
    const commands = (await completer.commands()).map((name) => `  ${name}\n`).join('');
    return `${PROGRAM.notes}"exit" ends. Commands:\n\n${commands}`;
  }
  const members = await completer.arguments(topic);
  const [name = ''] = topic.split(/\s+/);
  if (members === null) throw new LineError(`There is no command '${name}'`);
  if (members.length === 0) return `${name} takes no arguments\n`;
  const width = Math.max(...members.map((member) => shown(member).length));
  return `${name}\n${members.map((member) => `  ${shown(member).padEnd(width)}  ${kindOf(member)}\n`).join('')}`;
}

function shown({ name, isOptional }: Argument): string {
  return isOptional ? `[${name}=]` : `${name}=`;
}

function kindOf({ values, type }: Argument): string {
  return values.length === 0 ? type : values.join(' | ');
}
