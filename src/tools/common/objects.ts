/** `--object`: objects that images need, such as secrets, and the help about them. */

import { ObjectTree } from '../../objects/tree.ts';
import { QOM_TYPES, qomProperties } from '../../objects/types.ts';
import { parseKeyval } from '../../qmp/keyval.ts';
import { parseOption } from '../../qmp/validate.ts';
import type { ToolEnvironment } from './environment.ts';

/** Makes an object. True: help was asked for and printed. */
export async function addToolObject(env: ToolEnvironment, text: string): Promise<boolean> {
  if (!text.startsWith('{')) {
    const { options, help } = parseKeyval(text, 'qom-type');
    if (help) {
      const typeName = options['qom-type'];
      env.output.print(objectHelp(typeof typeName === 'string' ? typeName : undefined));
      return true;
    }
  }
  const options = parseOption('ObjectOptions', text, 'qom-type');
  env.objects ??= new ObjectTree();
  if (typeof options !== 'symbol') await env.objects.add(options);
  return false;
}

/** Kinds of objects that a tool has a use for; the daemon has more. */
const TOOL_TYPES: readonly string[] = [
  'authz-list',
  'authz-simple',
  'secret',
  'throttle-group',
  'tls-creds-psk',
  'tls-creds-x509',
];

/** The list of types, or the properties of one. */
function objectHelp(typeName: string | undefined): string {
  if (typeName !== undefined && TOOL_TYPES.includes(typeName)) {
    const settable = qomProperties(typeName).filter(([name]) => name !== 'type' && name !== 'loaded');
    const lines = settable.map(([name, kind]) => `  ${name}=<${kind}>\n`);
    return `${typeName} options:\n${lines.sort().join('')}`;
  }
  const names = TOOL_TYPES.filter((name) => Object.hasOwn(QOM_TYPES, name));
  return `List of user creatable objects:\n${names.map((name) => `  ${name}\n`).join('')}`;
}
