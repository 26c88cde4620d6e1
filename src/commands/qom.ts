/**
 * QMP commands over objects: object-add, object-del and the qom-* family.
 */

import type {
  ObjectPropertyInfo,
  ObjectPropertyValue,
  ObjectTypeInfo,
} from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import type { ObjectTree, QomNode } from '../objects/tree.ts';
import { findQomType, isQomSubtype, QOM_TYPES, qomProperties } from '../objects/types.ts';
import type { Handlers } from '../qmp/dispatch.ts';
import type { CommandContext } from './context.ts';

function deviceNotFound(path: string): BlockError {
  return new BlockError(`Device '${path}' not found`, { errorClass: 'DeviceNotFound' });
}

function typeName(node: QomNode): string {
  return node.kind === 'container' ? 'container' : node.object.typeName;
}

function listProperties(node: QomNode): ObjectPropertyInfo[] {
  const own = qomProperties(typeName(node)).map(([name, type]) => ({ name, type }));
  if (node.kind === 'object') return own;
  const children = [...node.children].map(([name, child]) => ({ name, type: `child<${typeName(child)}>` }));
  return [...own, ...children];
}

/** The node for qom-get and qom-set, which take an ambiguous path for a wrong one. */
function findNode(objects: ObjectTree, path: string): QomNode {
  const node = objects.resolve(path);
  if (node === null || node === 'ambiguous') throw deviceNotFound(path);
  return node;
}

function propertyError(node: QomNode, property: string, what: 'not found' | 'is not writable'): BlockError {
  return new BlockError(`Property '${typeName(node)}.${property}' ${what}`);
}

function getProperty(node: QomNode, property: string): unknown {
  if (property === 'type') return typeName(node);
  if (node.kind === 'container') {
    const child = node.children.get(property);
    if (child === undefined) throw propertyError(node, property, 'not found');
    return child.path;
  }
  const { accessors } = node.object;
  if (!Object.hasOwn(accessors, property)) throw propertyError(node, property, 'not found');
  return accessors[property]?.get();
}

/** A property that cannot be read has no value: its error is not the caller's concern. */
function withValue(node: QomNode, { name, type }: ObjectPropertyInfo): ObjectPropertyValue {
  try {
    return { name, type, value: getProperty(node, name) };
  } catch {
    return { name, type };
  }
}

function setProperty(node: QomNode, property: string, value: unknown): void {
  const accessor =
    node.kind === 'object' && Object.hasOwn(node.object.accessors, property)
      ? node.object.accessors[property]
      : undefined;
  if (accessor?.set !== undefined) {
    accessor.set(value);
    return;
  }
  const known =
    property === 'type' ||
    accessor !== undefined ||
    (node.kind === 'container' && node.children.has(property));
  throw propertyError(node, property, known ? 'is not writable' : 'not found');
}

function typeInfo(name: string): ObjectTypeInfo {
  const type = QOM_TYPES[name];
  return {
    name,
    ...(type?.abstract === true && { abstract: true }),
    ...(type?.parent != null && { parent: type.parent }),
  };
}

export const qomCommands = {
  'object-add': async ({ objects }, options) => {
    await objects.add(options);
    return {};
  },

  'object-del': ({ objects }, { id }) => {
    objects.delete(id);
    return {};
  },

  'qom-list': ({ objects }, { path }) => {
    const node = objects.resolve(path);
    if (node === 'ambiguous') throw new BlockError(`Path '${path}' is ambiguous`);
    if (node === null) throw deviceNotFound(path);
    return listProperties(node);
  },

  'qom-list-get': ({ objects }, { paths }) =>
    paths.map((path) => {
      const node = findNode(objects, path);
      return { properties: listProperties(node).map((property) => withValue(node, property)) };
    }),

  'qom-get': ({ objects }, { path, property }) => getProperty(findNode(objects, path), property),

  'qom-set': ({ objects }, { path, property, value }) => {
    setProperty(findNode(objects, path), property, value);
    return {};
  },

  'qom-list-types': (_context, { implements: ancestor, abstract = false }) =>
    Object.entries(QOM_TYPES)
      .filter(
        ([name, type]) =>
          (abstract || !type.abstract) && (ancestor === undefined || isQomSubtype(name, ancestor)),
      )
      .map(([name]) => typeInfo(name)),

  'qom-list-properties': (_context, { typename }) => {
    const type = findQomType(typename);
    if (type === null) {
      throw new BlockError(`Class '${typename}' not found`, { errorClass: 'DeviceNotFound' });
    }
    if (type.isInterface === true) throw new BlockError("Parameter 'typename' expects a QOM type");
    return qomProperties(typename).map(([name, property]) => ({ name, type: property }));
  },
} satisfies Handlers<
  CommandContext,
  | 'object-add'
  | 'object-del'
  | 'qom-list'
  | 'qom-list-get'
  | 'qom-get'
  | 'qom-set'
  | 'qom-list-types'
  | 'qom-list-properties'
>;
