/** How a use of a type is worded for people, in the reference of the repository and on the site. */

import type { TypeUse } from './model.ts';

/** `link` words a type that has a name. */
export function useText(use: TypeUse, link: (name: string) => string): string {
  switch (use.kind) {
    case 'str':
      return 'string';
    case 'bool':
      return 'boolean';
    case 'int':
      return use.integer;
    case 'list':
      return `list of ${useText(use.element, link)}`;
    case 'named':
      return link(use.name);
    default:
      return use.kind;
  }
}
