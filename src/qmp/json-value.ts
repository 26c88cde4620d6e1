/**
 * JSON values as QMP knows them: integers are kept apart from other numbers and are exact over the whole range from
 * int64 to uint64. Reading and writing them is the matter of json-parse.ts and json-print.ts.
 */

/**
 * A JSON number that was not written as an integer between -2^63 and 2^64-1. Kept apart because the schema accepts
 * `1` but neither `1.0` nor `1e0` where an integer is expected.
 */
export class JsonFloat {
  readonly value: number;

  constructor(value: number) {
    this.value = value;
  }
}

/** Members by name; parsed objects have no prototype, so that no member name is special. */
export interface JsonObject {
  readonly [member: string]: JsonValue;
}

/** Integers are numbers as far as these are exact (2^53) and bigint beyond. */
export type JsonValue =
  | null
  | boolean
  | number
  | bigint
  | JsonFloat
  | string
  | readonly JsonValue[]
  | JsonObject;

/** Whether a value is a JSON object. */
export function isJsonObject(value: unknown): value is JsonObject {
  return (
    typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof JsonFloat)
  );
}
