/** Durations of the public API: a decimal number of seconds and `s`, such as "300s". */
import { invalid } from './api-error.ts';

export const formatDuration = (seconds: number): string => `${seconds}s`;

export function parseDuration(field: string, value: unknown, limits: { min: number; max: number }): number {
  const match = typeof value === 'string' ? /^([0-9]{1,9})(\.0+)?s$/.exec(value) : null;
  if (match === null) throw invalid(`Field ${field} must be a duration in seconds such as "300s"`);
  const seconds = Number(match[1]);
  if (seconds < limits.min || seconds > limits.max) throw invalid(`Field ${field} must be between ${limits.min}s and ${limits.max}s`);
  return seconds;
}

export const rfc3339 = (time: Date): string => time.toISOString();
