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

interface RuleList {
  policy: QAuthZListPolicy;
  rules: readonly QAuthZListRule[];
}

/** The first rule that matches decides; without one the policy of the list does. */
function authorizerOf(list: RuleList): Authorizer {
  return {
    isAllowed: (identity) => {
      const rule = list.rules.find((candidate) => ruleMatches(candidate, identity));
      return (rule?.policy ?? list.policy) === 'allow';
    },
  };
}

const parseRules = (value: unknown): QAuthZListRule[] =>
  expectArray('rules', value).map((rule, index) => parseRule(rule, `rules[${index}]`));

/** A list given as JSON: the properties of authz-list. Throws when it is none. */
export function authzListOf(value: unknown): Authorizer {
  const { policy = 'deny', rules = [] } = expectStruct('list', value, ['policy', 'rules']);
  return authorizerOf({ policy: expectEnum('policy', policy, POLICIES), rules: parseRules(rules) });
}

export function createAuthzList(options: AuthzListOptions): { authorizer: Authorizer; qom: QomObject } {
  const state: RuleList = { policy: options.policy ?? 'deny', rules: options.rules ?? [] };
  const accessors = {
    policy: enumProperty(state, 'policy', 'policy', POLICIES),
    rules: {
      get: () => state.rules.map((rule) => ({ ...rule })),
      set: (value: unknown) => {
        state.rules = parseRules(value);
      },
    },
  };
  return { authorizer: authorizerOf(state), qom: { typeName: 'authz-list', accessors } };
}
