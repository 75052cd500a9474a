/** Bounded attempts at a provider. SDKs run with their own retries off, so that one place decides how long a call may take. */
import { backoffDelay, sleep } from '@lakebase/base';
import { KmsError } from './errors.ts';
import type { KmsEnvironment, KmsProvider } from './types.ts';

const ATTEMPT_TIMEOUT_MS = 3_000;
const ATTEMPTS_MAX = 3;

/** Runs `attempt` until it succeeds, fails for good, `attemptsMax` is used up, or `signal` fires. Every failure leaves as a `KmsError`.
 *  The signal given to `attempt` fires at its own deadline; an attempt that ignores it is left behind, not waited for. */
export async function withAttempts<T>(
  provider: KmsProvider,
  env: KmsEnvironment,
  signal: AbortSignal,
  classify: (error: unknown) => KmsError,
  attempt: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const timeoutMs = env.attemptTimeoutMs ?? ATTEMPT_TIMEOUT_MS;
  const attemptsMax = env.attemptsMax ?? ATTEMPTS_MAX;
  for (let count = 1; ; count++) {
    if (signal.aborted) throw timedOut(provider, 'the deadline of the caller passed before the call');
    let failure: KmsError;
    try {
      return await bounded(provider, timeoutMs, signal, attempt);
    } catch (error) {
      failure = error instanceof KmsError ? error : classify(error);
    }
    if (!failure.transient || count >= attemptsMax || signal.aborted) throw failure;
    try {
      await sleep(backoffDelay(count, { baseMs: 50, maxMs: 1_000 }), signal);
    } catch {
      throw failure;
    }
  }
}

async function bounded<T>(
  provider: KmsProvider,
  timeoutMs: number,
  outer: AbortSignal,
  attempt: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  let giveUp: (error: KmsError) => void = () => {};
  const gaveUp = new Promise<never>((_, reject) => {
    giveUp = reject;
  });
  const stop = (why: string): void => {
    // The race is decided before the SDK hears of it: its own error for the abort must not hide ours.
    giveUp(timedOut(provider, why));
    controller.abort();
  };
  const onAbort = (): void => stop('no answer before the deadline of the caller');
  const timer = setTimeout(() => stop(`no answer after ${timeoutMs} ms`), timeoutMs);
  outer.addEventListener('abort', onAbort, { once: true });
  try {
    return await Promise.race([attempt(controller.signal), gaveUp]);
  } finally {
    clearTimeout(timer);
    outer.removeEventListener('abort', onAbort);
  }
}

const timedOut = (provider: KmsProvider, why: string): KmsError =>
  new KmsError('UNREACHABLE', provider, 'Timeout', `${provider} Timeout: ${why}; check that the key manager can reach the service`);
