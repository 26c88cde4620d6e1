/**
 * Making elements. Everything a daemon says becomes text nodes and attribute values here: there is no way from a string
 * to markup, to a handler or to an address.
 */

type Child = Node | string | null;

interface Properties {
  readonly class?: string;
  readonly on?: { readonly [K in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[K]) => void };
  /** Attributes; null and false: left out, true: without a value. */
  readonly [attribute: string]: unknown;
}

/** Attributes that could run or load something when a stranger's text got into them. */
const BARRED = /^(on.+|style|src|srcdoc|href|action|formaction)$/i;

function setAttribute(element: Element, name: string, value: unknown): void {
  if (BARRED.test(name)) throw new Error(`The attribute ${name} is not set from here`);
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? '' : String(value));
}

/** An element with attributes, handlers and children. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  properties: Properties = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name !== 'on') setAttribute(element, name, value);
  }
  for (const [name, handler] of Object.entries(properties.on ?? {}))
    element.addEventListener(name, handler as EventListener);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const SVG = 'http://www.w3.org/2000/svg';

/** An element of a drawing. */
export function svg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Readonly<Record<string, string | number>> = {},
  ...children: readonly (Node | string)[]
): SVGElementTagNameMap[K] {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) setAttribute(element, name, value);
  element.append(...children);
  return element;
}

/** Replaces what is in the element. */
export function fill(element: Element, ...children: readonly Child[]): void {
  element.replaceChildren(...children.filter((child) => child !== null));
}

/** Sets the text unless it is that already: an unchanged page is not laid out again. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** An element of the page's frame; throws when it is not there. */
export function byId(id: string): HTMLElement {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`The page has no #${id}`);
  return element;
}

const ids = { last: 0 };

/** An id that no other element has. */
export function freshId(): string {
  ids.last += 1;
  return `x${ids.last}`;
}
