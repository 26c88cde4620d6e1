/**
 * The throttle-group object: limits on I/O that several nodes or devices share.
 *
 * Here: the limits, their validation and properties. The leaky buckets that enforce them are in
 * src/block/throttle.
 */

import type { ObjectOptions, ThrottleLimits } from '../../schema/generated/types.ts';
import { BlockError } from '../errors/error.ts';
import { expectInteger, expectStruct, type QomAccessor, type QomObject } from './qom.ts';

export type ThrottleGroupOptions = Extract<ObjectOptions, { 'qom-type': 'throttle-group' }>;

/** All limits, in operations or bytes per second; lengths of bursts in seconds; 0: no limit. */
export type ThrottleConfig = Required<ThrottleLimits>;

type LimitName = keyof ThrottleConfig;
type BucketName = `${'iops' | 'bps'}-${'total' | 'read' | 'write'}`;

export interface ThrottleGroup {
  readonly limits: Readonly<ThrottleConfig>;
  /** Called when the limits have changed. */
  readonly watchers: Set<() => void>;
}

const BUCKETS: readonly BucketName[] = [
  'bps-total',
  'bps-read',
  'bps-write',
  'iops-total',
  'iops-read',
  'iops-write',
];

const LIMITS: readonly LimitName[] = [
  ...BUCKETS.flatMap((bucket): LimitName[] => [bucket, `${bucket}-max`, `${bucket}-max-length`]),
  'iops-size',
];

const MAX_VALUE = 1e15;
const MAX_LENGTH = 2 ** 32 - 1;

const UNLIMITED = Object.fromEntries(
  LIMITS.map((name) => [name, name.endsWith('-max-length') ? 1 : 0]),
) as unknown as ThrottleConfig;

/** Whether total and separate limits of one kind are both set. */
function conflicts(config: ThrottleConfig, unit: 'iops' | 'bps', suffix: '' | '-max'): boolean {
  const separate = config[`${unit}-read${suffix}`] !== 0 || config[`${unit}-write${suffix}`] !== 0;
  return config[`${unit}-total${suffix}`] !== 0 && separate;
}

function checkBucket(config: ThrottleConfig, bucket: BucketName): void {
  const rate = config[bucket];
  const max = config[`${bucket}-max`];
  const length = config[`${bucket}-max-length`];
  if (rate < 0 || max < 0 || rate > MAX_VALUE || max > MAX_VALUE) {
    throw new BlockError(`bps/iops/max values must be within [0, ${MAX_VALUE}]`);
  }
  if (length === 0) throw new BlockError('the burst length cannot be 0');
  if (length > 1 && max === 0) throw new BlockError('burst length set without burst rate');
  if (max !== 0 && length > MAX_VALUE / max)
    throw new BlockError('burst length too high for this burst rate');
  if (max !== 0 && rate === 0) {
    throw new BlockError('bps_max/iops_max require corresponding bps/iops values');
  }
  if (max !== 0 && max < rate) throw new BlockError('bps_max/iops_max cannot be lower than bps/iops');
}

function checkConfig(config: ThrottleConfig): void {
  const clash = (['bps', 'iops'] as const).some(
    (unit) => conflicts(config, unit, '') || conflicts(config, unit, '-max'),
  );
  if (clash) {
    throw new BlockError('bps/iops/max total values and read/write values cannot be used at the same time');
  }
  const anyIops = config['iops-total'] !== 0 || config['iops-read'] !== 0 || config['iops-write'] !== 0;
  if (config['iops-size'] !== 0 && !anyIops) {
    throw new BlockError('iops size requires an iops value to be set');
  }
  for (const bucket of BUCKETS) checkBucket(config, bucket);
}

/** `config` with the members of `limits` replaced. */
function mergeLimits(config: ThrottleConfig, limits: ThrottleLimits): ThrottleConfig {
  const merged = { ...config };
  for (const name of LIMITS) {
    const value = limits[name];
    if (value === undefined) continue;
    if (name.endsWith('-max-length') && value > MAX_LENGTH) {
      throw new BlockError(`${name} value must be in the range [0, ${MAX_LENGTH}]`);
    }
    // The original keeps lengths in 32 unsigned bits, where -1 means the longest burst.
    merged[name] = name.endsWith('-max-length') && value < 0 ? value >>> 0 : value;
  }
  return merged;
}

/** The `x-...` options, which only object-add takes. */
function mergeLegacyOptions(config: ThrottleConfig, options: ThrottleGroupOptions): ThrottleConfig {
  const merged = { ...config };
  for (const name of LIMITS) {
    const value = options[`x-${name}`];
    if (value === undefined) continue;
    if (value < 0) throw new BlockError('Property values cannot be negative');
    if (name.endsWith('-max-length') && value > MAX_LENGTH) {
      // "therange" is the original's spelling.
      throw new BlockError(`x-${name} value must be in therange [0, ${MAX_LENGTH}]`);
    }
    merged[name] = value;
  }
  return merged;
}

function parseLimits(value: unknown): ThrottleLimits {
  const struct = expectStruct('limits', value, LIMITS);
  return Object.fromEntries(
    Object.entries(struct).map(([name, member]) => [name, expectInteger(`limits.${name}`, member)]),
  );
}

/** Makes a throttle group; qom-set of `limits` changes the members it names. */
export function createThrottleGroup(options: ThrottleGroupOptions): { group: ThrottleGroup; qom: QomObject } {
  const initial = mergeLegacyOptions(UNLIMITED, options);
  const group = {
    limits: mergeLimits(initial, options.limits ?? {}),
    watchers: new Set<() => void>(),
  };
  checkConfig(group.limits);

  const accessors: Record<string, QomAccessor> = {
    limits: {
      get: () => ({ ...group.limits }),
      set: (value) => {
        const merged = mergeLimits(group.limits, parseLimits(value));
        checkConfig(merged);
        group.limits = merged;
        for (const changed of group.watchers) changed();
      },
    },
  };
  for (const name of LIMITS) {
    accessors[`x-${name}`] = {
      get: () => group.limits[name],
      set: () => {
        throw new BlockError('Property cannot be set after initialization');
      },
    };
  }
  return { group, qom: { typeName: 'throttle-group', accessors } };
}
