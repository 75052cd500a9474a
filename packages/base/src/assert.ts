/** Assertions stay on in production: a broken invariant must stop the work, not corrupt it. */
export class AssertionFailed extends Error {
  override readonly name = 'AssertionFailed';
}

export function assert(condition: boolean, message: string | (() => string)): asserts condition {
  if (!condition) throw new AssertionFailed(typeof message === 'string' ? message : message());
}

export function must<T>(value: T | undefined | null, what: string): T {
  if (value === undefined || value === null) throw new AssertionFailed(`missing: ${what}`);
  return value;
}

export function unreachable(value: never): never {
  throw new AssertionFailed(`unreachable: ${String(value)}`);
}

export const errorMessage = (error: unknown): string => (error instanceof Error ? error.message : String(error));
