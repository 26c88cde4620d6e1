/**
 * Writes validators.js: ajv's code for the arguments of every command and for the types that the command line
 * takes, compiled ahead of time so that the daemon neither loads the compiler nor generates code.
 */

import { _, Ajv, type KeywordCxt } from 'ajv';
import standalone from 'ajv/dist/standalone/index.js';
import { expandModel, INTEGER_RANGES } from './expand.ts';
import type { IntegerKind, Model } from './model.ts';

const BANNER = '/* Generated from schema/*.json by schema/generator. Do not edit. */\n';

/** Types that have a validator of their own: arguments of commands and types of the command line. */
export function rootTypes(model: Model): readonly string[] {
  const roots = new Set<string>();
  for (const command of model.commands) if (command.argumentType !== null) roots.add(command.argumentType);
  for (const type of model.types.values()) if (type.commandLine) roots.add(type.name);
  return [...roots];
}

/** Texts of validators.js and validators.d.ts. */
export function emitValidators(model: Model): { readonly code: string; readonly declarations: string } {
  const ajv = new Ajv({
    strict: true,
    strictTypes: false,
    strictRequired: false,
    discriminator: true,
    messages: false,
    inlineRefs: false,
    ownProperties: false,
    code: { source: true, esm: true, lines: true, optimize: 1 },
  });
  ajv.addKeyword({ keyword: 'x-int', schemaType: 'string', code: integerCode });
  ajv.addSchema(expandModel(model, 'values'));
  const roots = rootTypes(model);
  const code = (standalone as unknown as typeof standalone.default)(
    ajv,
    Object.fromEntries(roots.map((name) => [name, `qmp#/$defs/${name}`])),
  );
  if (/\brequire\(/.test(code)) throw new Error('validators need the ajv run-time library');
  const functions = code.replaceAll(/^export const (\w+) = (validate\d+);$/gm, 'const $1 = $2;');
  const table = `export const VALIDATORS = { ${roots.join(', ')} };\n`;
  return { code: `${BANNER}${functions}\n${table}`, declarations: emitDeclarations(roots) };
}

/**
 * Accepts what the visitor accepts: JS integers, and bigint for what a double cannot hold. 64-bit unsigned members
 * take negative numbers as well, by their two's complement, as the original does.
 */
function integerCode(context: KeywordCxt): void {
  const kind = context.schema as IntegerKind;
  const { data } = context;
  const wide = kind === 'uint64';
  const isInteger = _`(Number.isInteger(${data}) || typeof ${data} == "bigint")`;
  if (wide) context.pass(_`${isInteger} && ${data} >= ${-(2 ** 63)} && ${data} < ${2 ** 64}`);
  else if (kind === 'int64')
    context.pass(_`${isInteger} && ${data} >= ${-(2 ** 63)} && ${data} < ${2 ** 63}`);
  else context.pass(_`${isInteger} && ${data} >= 0 && ${data} <= ${INTEGER_RANGES[kind].maximum}`);
}

function emitDeclarations(roots: readonly string[]): string {
  const lines = roots.map((name) => `  readonly ${name}: Validator;\n`).join('');
  return (
    `${BANNER}/** Accepts or rejects a parsed JSON value. */\n` +
    'export type Validator = (data: unknown) => boolean;\n' +
    `export declare const VALIDATORS: {\n${lines}};\n`
  );
}
