/** Limits and suspension of an endpoint as they come in requests. */
import { ApiError, invalid } from '../model/api-error.ts';
import { parseDuration } from '../model/duration.ts';
import { checkPgSettings } from '../model/settings.ts';
import type { EndpointDefaults } from '../store/projects.ts';

const CU_MIN = 0.25;
const CU_MAX = 128;
/** Longest suspend timeout: 7 days. */
const SUSPEND_SECONDS_MAX = 604_800;

export interface SettingsInput {
  readonly autoscaling_limit_min_cu?: number;
  readonly autoscaling_limit_max_cu?: number;
  readonly suspend_timeout_duration?: string | null;
  readonly no_suspension?: boolean | null;
  readonly pg_settings?: Record<string, unknown>;
}

export function checkLimits(min: number, max: number): void {
  for (const cu of [min, max])
    if (!(cu >= CU_MIN && cu <= CU_MAX)) throw invalid(`autoscaling limits must be between ${CU_MIN} and ${CU_MAX} CU`);
  if (min > max) throw invalid('autoscaling_limit_min_cu must not be greater than autoscaling_limit_max_cu');
}

/** Null: never suspended. Undefined: the input does not say. */
export function readSuspension(prefix: string, input: SettingsInput): number | null | undefined {
  const { suspend_timeout_duration: duration, no_suspension: never } = input;
  if (typeof duration === 'string' && never === true)
    throw new ApiError('INVALID_ARGUMENT', 'BAD_REQUEST', 'suspend_timeout_duration and no_suspension exclude each other');
  if (never === true) return null;
  if (duration === undefined || duration === null) return undefined;
  const seconds = parseDuration(`${prefix}.suspend_timeout_duration`, duration, { min: 0, max: SUSPEND_SECONDS_MAX });
  return seconds === 0 ? null : seconds;
}

export function mergeDefaults(base: EndpointDefaults, input: SettingsInput | undefined): EndpointDefaults {
  if (input === undefined) return base;
  const min = input.autoscaling_limit_min_cu ?? base.autoscaling_limit_min_cu;
  const max = input.autoscaling_limit_max_cu ?? Math.max(min, base.autoscaling_limit_max_cu);
  checkLimits(min, max);
  const suspend = readSuspension('spec.default_endpoint_settings', input);
  return {
    autoscaling_limit_min_cu: min,
    autoscaling_limit_max_cu: max,
    suspend_timeout_seconds: suspend === undefined ? base.suspend_timeout_seconds : suspend,
    pg_settings: input.pg_settings === undefined ? base.pg_settings : checkPgSettings(input.pg_settings),
  };
}
