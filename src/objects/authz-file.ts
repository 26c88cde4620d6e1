/**
 * The authz-list-file object: rules as those of authz-list, in a file, which is read anew for each peer unless that is
 * turned off. A file that cannot be read or understood then lets nobody in.
 */

import type { ObjectOptions } from '../../schema/generated/types.ts';
import { readHostFileNow } from '../aio/host/files.ts';
import { strerror } from '../errors/errno.ts';
import { BlockError, errnoOf } from '../errors/error.ts';
import { type Authorizer, authzListOf } from './authz.ts';
import { booleanProperty, type QomObject, stringProperty } from './qom.ts';

export type AuthzListFileOptions = Extract<
  ObjectOptions,
  { 'qom-type': 'authz-list-file' | 'authz-listfile' }
>;

/** Some ten thousand rules; a wrong path must not hold up anybody for long. */
const MAX_FILE_BYTES = 1024 * 1024;

function load(filename: string): Authorizer {
  const fail = (reason: string): BlockError => new BlockError(`Unable to read ${filename}: ${reason}`);
  let text: string;
  try {
    text = readHostFileNow(filename, MAX_FILE_BYTES).toString();
  } catch (error) {
    throw fail(strerror(errnoOf(error)));
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw fail('it is not JSON');
  }
  try {
    return authzListOf(value);
  } catch (error) {
    throw error instanceof BlockError ? fail(error.message) : error;
  }
}

/** Throws when the file is no list of rules. */
export function createAuthzListFile(options: AuthzListFileOptions): {
  authorizer: Authorizer;
  qom: QomObject;
} {
  const state = { filename: options.filename, refresh: options.refresh ?? true };
  const first = load(state.filename);
  const authorizer: Authorizer = {
    isAllowed: (identity) => {
      if (!state.refresh) return first.isAllowed(identity);
      try {
        return load(state.filename).isAllowed(identity);
      } catch {
        return false;
      }
    },
  };
  const accessors = {
    filename: stringProperty(state, 'filename', 'filename'),
    refresh: booleanProperty(state, 'refresh', 'refresh'),
  };
  return { authorizer, qom: { typeName: 'authz-list-file', accessors } };
}
