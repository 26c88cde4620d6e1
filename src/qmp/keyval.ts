/**
 * Reads command-line options of the form `driver=raw,file.driver=file,file.filename=x` into a tree of strings.
 *
 * Keys are dotted paths; a path whose fragments are numbers from 0 on makes a list. ",," in a value stands for a
 * comma. Conversion of the strings by the schema is the visitor's matter (visitor.ts). Error texts are those of
 * qemu-storage-daemon 7.2.
 */

import { BlockError } from '../errors/error.ts';
import { writeOrder } from '../errors/member-order.ts';

/** A tree of strings; objects have no prototype. */
export type KeyvalValue = string | readonly KeyvalValue[] | KeyvalObject;

export interface KeyvalObject {
  readonly [name: string]: KeyvalValue;
}

/** Longest fragment of a key. */
const FRAGMENT_MAX = 127;
/** Most fragments of a key: the tree is walked recursively. The original has no such limit. */
const DEPTH_MAX = 512;

const FRAGMENT = /^(?:[0-9]+|(?:__[A-Za-z0-9.-]+_)?[A-Za-z][A-Za-z0-9_-]*)/;

interface MutableTree {
  [name: string]: string | MutableTree;
}

const newTree = (): MutableTree => Object.create(null) as MutableTree;

/** What was read, and whether help was asked for (`help` or `?` as a parameter of its own). */
export interface KeyvalResult {
  readonly options: KeyvalObject;
  readonly help: boolean;
}

/**
 * Reads keyval text. `impliedKey` is the key of a first parameter without "="; null: none.
 * Throws BlockError with the original's text.
 */
export function parseKeyval(text: string, impliedKey: string | null): KeyvalResult {
  const root = newTree();
  let help = false;
  let rest = text;
  let implied = impliedKey;
  while (rest !== '') {
    const nameLength = rest.search(/[=,]|$/);
    const name = rest.slice(0, nameLength);
    const hasValue = rest[nameLength] === '=';
    if (!hasValue && (name === 'help' || name === '?')) {
      help = true;
      rest = rest.slice(nameLength + 1);
    } else if (!hasValue && implied !== null && name !== '') {
      put(root, [implied], name);
      rest = rest.slice(nameLength + 1);
    } else {
      const path = splitKey(name);
      if (!hasValue) throw new BlockError(`Expected '=' after parameter '${name}'`);
      const [value, length] = readValue(rest, nameLength + 1);
      put(root, path, value);
      rest = rest.slice(length);
    }
    implied = null;
  }
  return { options: listify(root, '') as KeyvalObject, help };
}

/** Splits a key into fragments and checks them. */
function splitKey(key: string): readonly string[] {
  const fragments: string[] = [];
  let rest = key;
  for (;;) {
    const fragment = FRAGMENT.exec(rest)?.[0] ?? '';
    const tail = rest.slice(fragment.length);
    const isIndex = /^[0-9]/.test(fragment);
    if (fragment === '' || (tail !== '' && !tail.startsWith('.')) || (isIndex && fragments.length === 0)) {
      throw new BlockError(`Invalid parameter '${key}'`);
    }
    if (fragment.length > FRAGMENT_MAX) {
      const isWhole = fragment === key;
      throw new BlockError(`Parameter${isWhole ? '' : ' fragment'} '${fragment}' is too long`);
    }
    fragments.push(fragment);
    if (fragments.length > DEPTH_MAX)
      throw new BlockError(`Parameter '${fragments[0]}' is nested too deeply`);
    if (tail === '') return fragments;
    rest = tail.slice(1);
  }
}

/** The value that starts at `start` and the length of the text up to the next parameter. */
function readValue(text: string, start: number): readonly [string, number] {
  let value = '';
  let at = start;
  for (;;) {
    const comma = text.indexOf(',', at);
    if (comma < 0) return [value + text.slice(at), text.length];
    value += text.slice(at, comma);
    if (text[comma + 1] !== ',') return [value, comma + 1];
    value += ',';
    at = comma + 2;
  }
}

function put(root: MutableTree, path: readonly string[], value: string): void {
  let tree = root;
  for (let i = 0; i < path.length - 1; i++) {
    const fragment = path[i] ?? '';
    const next = tree[fragment];
    if (typeof next === 'string') throw inconsistent(path.slice(0, i + 1));
    const child = next ?? newTree();
    tree[fragment] = child;
    tree = child;
  }
  const last = path.at(-1) ?? '';
  if (typeof tree[last] === 'object') throw inconsistent(path);
  tree[last] = value;
}

function inconsistent(path: readonly string[]): BlockError {
  return new BlockError(`Parameters '${path.join('.')}.*' used inconsistently`);
}

/** Makes lists of the trees whose names are numbers. */
function listify(tree: MutableTree, prefix: string): KeyvalValue {
  const names = writeOrder(Object.keys(tree));
  const converted: Record<string, KeyvalValue> = Object.create(null);
  for (const name of names) {
    const value = tree[name] ?? '';
    converted[name] = typeof value === 'string' ? value : listify(value, `${prefix}${name}.`);
  }
  const indexes = names.filter((name) => /^[0-9]/.test(name));
  if (indexes.length === 0) return converted;
  if (indexes.length < names.length) throw new BlockError(`Parameters '${prefix}*' used inconsistently`);
  const elements: KeyvalValue[] = [];
  const byNumber = new Map(indexes.map((name) => [Number(name), converted[name] ?? '']));
  for (let i = 0; i < byNumber.size; i++) {
    const element = byNumber.get(i);
    if (element === undefined) throw new BlockError(`Parameter '${prefix}${i}' missing`);
    elements.push(element);
  }
  return elements;
}
