/** The null device: output is lost, input never comes. */

import { type ChardevBackend, ignore } from './backend.ts';

export function openNull(): ChardevBackend {
  return {
    kind: 'null',
    typeName: 'chardev-null',
    accessors: {},
    filename: () => 'null',
    start: (events) => events.opened(),
    stop: ignore,
    write: ignore,
    backlogBytes: () => 0,
    setReading: ignore,
    close: ignore,
  };
}
