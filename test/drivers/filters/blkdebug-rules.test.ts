/** Rules of blkdebug against a model: the documented meaning of states, events, sectors and `once`, step by step. */

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { parseConfig } from '../../../src/drivers/filters/blkdebug/config-file.ts';
import {
  addBreakpoint,
  addRules,
  createRuleBook,
  faultFor,
  groupsOfOptions,
  happened,
  RULE_GROUPS,
  removeBreakpoints,
  resumeSuspended,
} from '../../../src/drivers/filters/blkdebug/rules.ts';

const silent = (): void => undefined;
const EVENTS = ['read_aio', 'write_aio', 'l2_load'] as const;
const TYPES = ['read', 'write', 'flush'] as const;

interface Inject {
  readonly event: (typeof EVENTS)[number];
  readonly state: number;
  readonly iotype?: (typeof TYPES)[number];
  readonly errno: number;
  readonly sector: number;
  readonly once: boolean;
}

interface SetState {
  readonly event: (typeof EVENTS)[number];
  readonly state: number;
  readonly new_state: number;
}

const state = fc.integer({ min: 0, max: 3 });
const event = fc.constantFrom(...EVENTS);
const injects = fc.array(
  fc.record(
    {
      event,
      state,
      iotype: fc.constantFrom(...TYPES),
      errno: fc.integer({ min: 0, max: 4 }),
      sector: fc.integer({ min: -1, max: 3 }),
      once: fc.boolean(),
    },
    { requiredKeys: ['event', 'state', 'errno', 'sector', 'once'] },
  ),
  { maxLength: 5 },
) as fc.Arbitrary<Inject[]>;
const setStates = fc.array(fc.record({ event, state, new_state: fc.integer({ min: 1, max: 3 }) }), {
  maxLength: 4,
}) as fc.Arbitrary<SetState[]>;
const steps = fc.array(
  fc.oneof(
    fc.record({ event }),
    fc.record({
      type: fc.constantFrom(...TYPES),
      sector: fc.integer({ min: 0, max: 3 }),
      count: fc.integer({ min: 1, max: 2 }),
    }),
  ),
  { maxLength: 30 },
);

/** The documentation, as naively as it can be said. */
class Model {
  #state = 1;
  readonly #gone = new Set<Inject>();
  #inForce: Inject[] = [];
  readonly #injects: readonly Inject[];
  readonly #setStates: readonly SetState[];

  constructor(all: readonly Inject[], states: readonly SetState[]) {
    this.#injects = all;
    this.#setStates = states;
  }

  happened(name: string): void {
    const counts = (rule: { readonly event: string; readonly state: number }): boolean =>
      rule.event === name && (rule.state === 0 || rule.state === this.#state);
    const injected = this.#injects.filter((rule) => counts(rule) && !this.#gone.has(rule));
    const first = this.#setStates.find(counts);
    if (injected.length > 0) this.#inForce = injected;
    if (first !== undefined) this.#state = first.new_state;
  }

  errnoOf(type: string, sector: number, count: number): number {
    const met = this.#inForce.find(
      (rule) =>
        !this.#gone.has(rule) &&
        (rule.iotype === undefined || rule.iotype === type) &&
        (rule.sector === -1 || (type !== 'flush' && rule.sector >= sector && rule.sector < sector + count)),
    );
    if (met !== undefined && met.errno !== 0 && met.once) this.#gone.add(met);
    return met?.errno ?? 0;
  }
}

test('requests fail as the documentation says', () => {
  fc.assert(
    fc.property(injects, setStates, steps, (all, states, script) => {
      const book = createRuleBook();
      addRules(book, [...groupsOfOptions('inject-error', all), ...groupsOfOptions('set-state', states)]);
      const model = new Model(all, states);
      for (const step of script) {
        if ('event' in step) {
          model.happened(step.event);
          expect(happened(book, step.event, silent)).toBe(null);
        } else {
          const bytes = step.type === 'flush' ? 0 : step.count * 512;
          const { errno } = faultFor(book, step.type, step.type === 'flush' ? 0 : step.sector * 512, bytes);
          expect(errno).toBe(model.errnoOf(step.type, step.sector, step.count));
        }
      }
    }),
    { numRuns: 500 },
  );
});

test('a file and options give the same rules', () => {
  const text = `
[inject-error]
  event = "l2_load"
  state = "2"
  iotype = "read"
  errno = "28"
  sector = "7"
  once = "on"
  immediately = "on"
[set-state "name"]
  event = "write_aio"
  new_state = "2"
`.replace(/^\n/, '');
  const fromFile = createRuleBook();
  addRules(fromFile, parseConfig(text, RULE_GROUPS));
  const fromOptions = createRuleBook();
  addRules(fromOptions, [
    ...groupsOfOptions('set-state', { 0: { event: 'write_aio', new_state: '2' } }),
    ...groupsOfOptions('inject-error', [
      { event: 'l2_load', state: 2, iotype: 'read', errno: 28, sector: 7, once: true, immediately: true },
    ]),
  ]);
  expect(fromFile).toEqual(fromOptions);
  expect(fromFile.rules.length).toBe(2);
});

test('a request is suspended once for each breakpoint, and goes on when all have been resumed', async () => {
  const said: string[] = [];
  const report = (text: string): void => void said.push(text);
  const book = createRuleBook();
  expect(addBreakpoint(book, 'no_such_event', 'x')).toBe(false);
  expect(addBreakpoint(book, 'l2_load', 'a')).toBe(true);
  expect(addBreakpoint(book, 'l2_load', 'b')).toBe(true);
  expect(happened(book, 'read_aio', report)).toBe(null);
  const stopped = happened(book, 'l2_load', report);
  expect(stopped).not.toBe(null);
  let goesOn = false;
  const done = stopped!.then(() => {
    goesOn = true;
  });
  expect(happened(book, 'l2_load', report)).toBe(null);
  expect(resumeSuspended(book, 'a', report)).toBe(true);
  expect(resumeSuspended(book, 'a', report)).toBe(false);
  await Promise.resolve();
  expect(goesOn).toBe(false);
  expect(removeBreakpoints(book, 'b', report)).toBe(false);
  await done;
  expect(said).toEqual([
    "blkdebug: Suspended request 'b'\n",
    "blkdebug: Suspended request 'a'\n",
    "blkdebug: Resuming request 'a'\n",
    "blkdebug: Resuming request 'b'\n",
  ]);
});
