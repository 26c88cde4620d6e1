/** Throttle groups in virtual time: rates, bursts, turns of members and directions, drained members. */

import { describe, expect, test } from 'vitest';
import {
  count,
  createThrottle,
  type Direction,
  joinThrottle,
  leaveThrottle,
  letAllGo,
  mayBegin,
  type ThrottleMember,
  waitTurn,
} from '../../../src/block/throttle/throttle-group.ts';
import { createThrottleGroup, type ThrottleGroup } from '../../../src/objects/throttle-group.ts';
import { type VirtualClock, virtualClock } from './virtual-clock.ts';

interface Member extends ThrottleMember {
  setDrained(drained: boolean): void;
}

type Limits = Parameters<typeof createThrottleGroup>[0]['limits'] & object;

class Bench {
  readonly clock: VirtualClock;
  readonly group: ThrottleGroup;
  readonly setLimits: (limits: Limits) => void;
  readonly #throttle: ReturnType<typeof createThrottle>;

  constructor(limits: Limits, lateMs = 0) {
    this.clock = virtualClock(lateMs);
    const { group, qom } = createThrottleGroup({ 'qom-type': 'throttle-group', id: 'g', limits });
    this.group = group;
    this.setLimits = (value) => qom.accessors.limits?.set?.(value);
    this.#throttle = createThrottle(group, this.clock);
  }

  member(): Member {
    let drained = false;
    const member = joinThrottle(this.#throttle, () => drained);
    return Object.assign(member, {
      setDrained(value: boolean) {
        drained = value;
        if (value) letAllGo(member);
      },
    });
  }
}

/** A request as the driver makes it; resolves when it may begin. */
async function request(member: ThrottleMember, direction: Direction, bytes: number): Promise<void> {
  if (mayBegin(member, direction)) count(member, direction, bytes);
  else await waitTurn(member, direction, bytes);
}

/** Sends `inFlight` requests at a time for so long and returns how many began. */
async function load(
  bench: Bench,
  member: ThrottleMember,
  { direction = 'read' as Direction, bytes = 4096, inFlight = 16 } = {},
): Promise<{ begun: number; stop(): void }> {
  const result = {
    begun: 0,
    stopped: false,
    stop() {
      result.stopped = true;
    },
  };
  const worker = async (): Promise<void> => {
    for (;;) {
      await request(member, direction, bytes);
      if (result.stopped) return;
      result.begun++;
      // A request takes a moment: without it an unlimited group would never give way.
      await new Promise<void>((resolve) => void bench.clock.after(0, resolve));
    }
  };
  for (let i = 0; i < inFlight; i++) void worker();
  return result;
}

describe('rates', () => {
  test.each([
    ['iops-total', 100, 4096, 1000],
    ['iops-read', 1000, 512, 10_000],
    ['iops-total', 10, 512, 100],
    ['bps-total', 1_000_000, 4096, 10_000_000 / 4096],
    ['bps-read', 10_000_000, 65_536, 100_000_000 / 65_536],
  ] as const)('%s=%d with requests of %d bytes holds over 10 s', async (name, rate, bytes, expected) => {
    for (const lateMs of [0, 3]) {
      const bench = new Bench({ [name]: rate }, lateMs);
      const running = await load(bench, bench.member(), { bytes });
      await bench.clock.pass(10_000);
      running.stop();
      expect(running.begun).toBeGreaterThan(expected * 0.98);
      expect(running.begun).toBeLessThan(expected * 1.02 + 2);
    }
  });

  test('a limit of the other direction does not count', async () => {
    const bench = new Bench({ 'iops-write': 10 });
    const member = bench.member();
    for (let i = 0; i < 1000; i++) expect(mayBegin(member, 'read')).toBe(true);
  });

  test('iops-size: larger requests are several operations, smaller ones are one', async () => {
    const begunWith = async (bytes: number): Promise<number> => {
      const bench = new Bench({ 'iops-total': 100, 'iops-size': 4096 });
      const running = await load(bench, bench.member(), { bytes });
      await bench.clock.pass(10_000);
      return running.begun;
    };
    expect(await begunWith(512)).toBeCloseTo(1011, -1);
    expect(await begunWith(4096)).toBeCloseTo(1011, -1);
    expect(await begunWith(8192)).toBeCloseTo(506, -1);
    expect(await begunWith(6144)).toBeCloseTo(674, -1);
  });
});

describe('bursts', () => {
  /** Requests begun in each of the first seconds. */
  async function perSecond(limits: Limits, seconds: number): Promise<number[]> {
    const bench = new Bench(limits);
    const running = await load(bench, bench.member(), { inFlight: 64 });
    const counts: number[] = [];
    for (let before = 0; counts.length < seconds; before = running.begun) {
      await bench.clock.pass(1000);
      counts.push(running.begun - before);
    }
    return counts;
  }

  test('without -max-length the burst comes at once', async () => {
    const counts = await perSecond({ 'iops-total': 10, 'iops-total-max': 50 }, 3);
    expect(counts[0]).toBeGreaterThanOrEqual(59);
    expect(counts[0]).toBeLessThanOrEqual(62);
    expect(counts.slice(1)).toEqual([10, 10]);
  });

  test('-max-length holds the burst rate for that long, and the rate from then on', async () => {
    const limits = { 'iops-total': 10, 'iops-total-max': 100, 'iops-total-max-length': 3 };
    const counts = await perSecond(limits, 8);
    // The bucket holds 300 and leaks 10 a second meanwhile: a bit more than three seconds.
    for (const count of counts.slice(0, 3)) expect(Math.abs(count - 104)).toBeLessThanOrEqual(8);
    for (const count of counts.slice(4)) expect(Math.abs(count - 10)).toBeLessThanOrEqual(1);
  });

  test('a pause earns another burst', async () => {
    const bench = new Bench({ 'iops-total': 10, 'iops-total-max': 50 });
    const member = bench.member();
    const first = await load(bench, member, { inFlight: 64 });
    await bench.clock.pass(100);
    first.stop();
    await bench.clock.pass(8000);
    const second = await load(bench, member, { inFlight: 64 });
    await bench.clock.pass(1);
    expect(second.begun).toBeGreaterThan(10);
  });
});

describe('members', () => {
  test('share the limits evenly, however much each sends', async () => {
    const bench = new Bench({ 'iops-total': 300 });
    const members = [bench.member(), bench.member(), bench.member()];
    const loads = await Promise.all(
      members.map((member, at) => load(bench, member, { inFlight: [1, 8, 64][at]! })),
    );
    await bench.clock.pass(10_000);
    const [few, some, many] = loads.map(({ begun }) => begun);
    // One request at a time can be in line only once; the others get what it leaves, in equal parts.
    expect(Math.abs(some! - many!)).toBeLessThan(60);
    expect(few! + some! + many!).toBeLessThan(3000 * 1.02 + 2);
    expect(few).toBeGreaterThan(900);
  });

  test('take turns in the order in which they joined', async () => {
    const bench = new Bench({ 'iops-total': 10 });
    const members = [bench.member(), bench.member(), bench.member()];
    const order: number[] = [];
    for (let i = 0; i < 12; i++) {
      const at = Math.floor(i / 4);
      void request(members[at]!, 'write', 512).then(() => order.push(at));
    }
    await bench.clock.pass(2000);
    expect(order.slice(0, 2)).toEqual([0, 0]);
    expect(order.slice(2, 9)).toEqual([0, 1, 2, 0, 1, 2, 1]);
  });

  test('reads and writes take turns under a total limit', async () => {
    const bench = new Bench({ 'bps-total': 10_000 });
    const member = bench.member();
    const order: Direction[] = [];
    for (const direction of ['read', 'write'] as const) {
      for (let i = 0; i < 6; i++) void request(member, direction, 1000).then(() => order.push(direction));
    }
    await bench.clock.pass(3000);
    expect(order).toHaveLength(12);
    expect(order.slice(2, 10).filter((direction) => direction === 'read')).toHaveLength(4);
  });

  test('one that leaves does not take the turn with it', async () => {
    const bench = new Bench({ 'iops-total': 10 });
    const [one, two, three] = [bench.member(), bench.member(), bench.member()];
    for (let i = 0; i < 3; i++) void request(two, 'read', 512);
    await bench.clock.pass(1000);
    leaveThrottle(two);
    const order: string[] = [];
    for (let i = 0; i < 4; i++) {
      void request(one, 'read', 512).then(() => order.push('one'));
      void request(three, 'read', 512).then(() => order.push('three'));
    }
    await bench.clock.pass(3000);
    expect(order.sort()).toEqual(['one', 'one', 'one', 'one', 'three', 'three', 'three', 'three']);
  });
});

describe('drained members', () => {
  test('let their requests go on, and new ones; others go on waiting', async () => {
    const bench = new Bench({ 'iops-total': 1 });
    const [drained, other] = [bench.member(), bench.member()];
    const begun = { drained: 0, other: 0 };
    for (let i = 0; i < 20; i++) {
      void request(drained, 'write', 512).then(() => begun.drained++);
      void request(other, 'write', 512).then(() => begun.other++);
    }
    await bench.clock.pass(1);
    expect(begun.drained + begun.other).toBe(1);
    drained.setDrained(true);
    await bench.clock.pass(1);
    expect(begun.drained).toBe(20);
    void request(drained, 'write', 512).then(() => begun.drained++);
    await bench.clock.pass(1);
    expect(begun.drained).toBe(21);
    expect(begun.other).toBeLessThan(3);
    drained.setDrained(false);
    expect(mayBegin(drained, 'write')).toBe(false);
  });

  test('what they did counts', async () => {
    const bench = new Bench({ 'bps-total': 1000 });
    const member = bench.member();
    member.setDrained(true);
    await request(member, 'read', 10_000);
    member.setDrained(false);
    let began = false;
    void request(member, 'read', 1).then(() => {
      began = true;
    });
    await bench.clock.pass(9000);
    expect(began).toBe(false);
    await bench.clock.pass(1000);
    expect(began).toBe(true);
  });
});

describe('changed limits', () => {
  test('hold at once for those who wait', async () => {
    const bench = new Bench({ 'bps-read': 1 });
    const member = bench.member();
    let begun = 0;
    for (let i = 0; i < 10; i++) void request(member, 'read', 100_000).then(() => begun++);
    await bench.clock.pass(10_000);
    expect(begun).toBe(1);
    bench.setLimits({ 'bps-read': 1_000_000 });
    await bench.clock.pass(1000);
    expect(begun).toBe(10);
  });

  test('no limits: nobody waits', async () => {
    const bench = new Bench({ 'iops-total': 1 });
    const member = bench.member();
    let begun = 0;
    for (let i = 0; i < 10; i++) void request(member, 'write', 512).then(() => begun++);
    await bench.clock.pass(1);
    expect(begun).toBe(1);
    bench.setLimits({ 'iops-total': 0 });
    await bench.clock.pass(0);
    expect(begun).toBe(10);
  });
});
