/** Records as people read them: a line for each member, in the order of the original. */

import { writeOrder } from '../../errors/member-order.ts';

/** Members as "name: value"; what has parts of its own stands below, indented. */
export function memberLines(value: object, indent: string): string[] {
  const members = value as Readonly<Record<string, unknown>>;
  return writeOrder(Object.keys(members))
    .filter((name) => members[name] !== undefined)
    .flatMap((name) => valueLines(`${indent}${name.replaceAll('-', ' ')}:`, members[name], indent));
}

function valueLines(label: string, value: unknown, indent: string): string[] {
  const inner = `${indent}    `;
  if (Array.isArray(value)) {
    const elements = value.flatMap((element, index) => valueLines(`${inner}[${index}]:`, element, inner));
    return [label, ...elements];
  }
  if (typeof value === 'object' && value !== null) return [label, ...memberLines(value, inner)];
  return [`${label} ${String(value)}`];
}
