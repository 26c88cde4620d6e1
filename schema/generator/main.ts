/**
 * Reads schema/*.json and writes schema/generated/. Run by scripts/build.mjs from dist/schema/generator.
 */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { emitClient } from './emit-client.ts';
import { emitForms } from './emit-forms.ts';
import { emitIntrospection } from './emit-introspection.ts';
import { emitOptionHelp } from './emit-option-help.ts';
import { emitPython } from './emit-python.ts';
import { emitReference } from './emit-reference.ts';
import { emitTypes } from './emit-types.ts';
import { emitValidators } from './emit-validators.ts';
import { emitVisitorTables } from './emit-visitor.ts';
import { expandModel } from './expand.ts';
import { loadModel } from './model.ts';

const root = path.resolve(import.meta.dirname, '../../..');

/** Writes a file unless it has that text already, so that an unchanged schema rebuilds nothing. */
function write(file: string, text: string): void {
  const target = path.join(root, file);
  mkdirSync(path.dirname(target), { recursive: true });
  try {
    if (readFileSync(target, 'utf8') === text) return;
  } catch {
    // not there yet
  }
  writeFileSync(target, text);
}

const model = loadModel(path.join(root, 'schema'));
const validators = emitValidators(model);
write('schema/generated/types.ts', await emitTypes(model));
write('schema/generated/client.ts', emitClient(model));
write('schema/generated/forms.ts', emitForms(model));
write('schema/generated/visitor-tables.ts', emitVisitorTables(model));
write('schema/generated/option-help.ts', emitOptionHelp(model));
write('schema/generated/introspection.ts', emitIntrospection(model));
write('schema/generated/validators.d.ts', validators.declarations);
write('schema/generated/validators.js', validators.code);
write('dist/schema/generated/validators.js', validators.code); // tsc copies no .js file
write('schema/generated/qmp.schema.json', `${JSON.stringify(expandModel(model, 'plain'), null, 1)}\n`);
write(
  'dist/client/qblockd_client.py',
  emitPython(model, readFileSync(path.join(root, 'client/python/base.py'), 'utf8')),
);
write('schema/generated/REFERENCE.md', emitReference(model));
