/**
 * Authorisation objects: who may use a service, by the identity the peer proved (for TLS with certificates the
 * distinguished name of the client's certificate).
 */

import type {
  ObjectOptions,
  QAuthZListFormat,
  QAuthZListPolicy,
  QAuthZListRule,
} from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import { globMatch } from './glob.ts';
import {
  enumProperty,
  expectArray,
  expectEnum,
  expectString,
  expectStruct,
  type QomObject,
  stringProperty,
} from './qom.ts';

export type AuthzListOptions = Extract<ObjectOptions, { 'qom-type': 'authz-list' }>;
export type AuthzSimpleOptions = Extract<ObjectOptions, { 'qom-type': 'authz-simple' }>;

/** Decides about a peer. Later changes of the object's properties take effect at once. */
export interface Authorizer {
  isAllowed(identity: string): boolean;
}

const POLICIES: readonly QAuthZListPolicy[] = ['deny', 'allow'];
const FORMATS: readonly QAuthZListFormat[] = ['exact', 'glob'];

/** The one identity named is allowed. */
export function createAuthzSimple(options: AuthzSimpleOptions): { authorizer: Authorizer; qom: QomObject } {
  const state = { identity: options.identity };
  return {
    authorizer: { isAllowed: (identity) => identity === state.identity },
    qom: { typeName: 'authz-simple', accessors: { identity: stringProperty(state, 'identity', 'identity') } },
  };
}

/** A required member of a rule. */
function member(rule: Readonly<Record<string, unknown>>, path: string, name: string): unknown {
  if (rule[name] === undefined) throw new BlockError(`Parameter '${path}.${name}' is missing`);
  return rule[name];
}

function parseRule(value: unknown, path: string): QAuthZListRule {
  const rule = expectStruct(path, value, ['match', 'policy', 'format']);
  const match = expectString(`${path}.match`, member(rule, path, 'match'));
  const policy = expectEnum(`${path}.policy`, member(rule, path, 'policy'), POLICIES);
  const { format } = rule;
  return format === undefined
    ? { match, policy }
    : { match, policy, format: expectEnum(`${path}.format`, format, FORMATS) };
}

function ruleMatches(rule: QAuthZListRule, identity: string): boolean {
  return rule.format === 'glob' ? globMatch(rule.match, identity) : rule.match === identity;
}

/** The first rule that matches decides; without one the policy of the list does. */
export function createAuthzList(options: AuthzListOptions): { authorizer: Authorizer; qom: QomObject } {
  const state = { policy: options.policy ?? 'deny', rules: options.rules ?? [] };
  const authorizer: Authorizer = {
    isAllowed: (identity) => {
      const rule = state.rules.find((candidate) => ruleMatches(candidate, identity));
      return (rule?.policy ?? state.policy) === 'allow';
    },
  };
  const accessors = {
    policy: enumProperty(state, 'policy', 'policy', POLICIES),
    rules: {
      get: () => state.rules.map((rule) => ({ ...rule })),
      set: (value: unknown) => {
        state.rules = expectArray('rules', value).map((rule, index) => parseRule(rule, `rules[${index}]`));
      },
    },
  };
  return { authorizer, qom: { typeName: 'authz-list', accessors } };
}
