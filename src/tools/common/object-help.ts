/** What `--object help` and `--object TYPE,help` print. */

import { QOM_TYPES, qomProperties } from '../../objects/types.ts';

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
export function objectHelp(typeName: string | undefined): string {
  if (typeName !== undefined && TOOL_TYPES.includes(typeName)) {
    const settable = qomProperties(typeName).filter(([name]) => name !== 'type' && name !== 'loaded');
    const lines = settable.map(([name, kind]) => `  ${name}=<${kind}>\n`);
    return `${typeName} options:\n${lines.sort().join('')}`;
  }
  const names = TOOL_TYPES.filter((name) => Object.hasOwn(QOM_TYPES, name));
  return `List of user creatable objects:\n${names.map((name) => `  ${name}\n`).join('')}`;
}
