/** Ends every single request after a while. A request that ignores its signal is left behind, not waited for; what it answers later is dropped. */
import { type FailpointName, LakebaseError, failpoint } from '@lakebase/base';
import type { CallOptions, ObjectStore } from './object-store.ts';
import { type StoreCall, StoreDecorator, type StoreOperation } from './store-decorator.ts';

/** Slower than this over its whole length, and a transfer counts as stalled. */
const BYTES_PER_MS_MIN = 1_000;

/** Of an object read whole, whose size is not known before: as long as a large layer takes. */
export const BYTES_UNKNOWN = 128 * 1024 * 1024;
/** Ranges may be given far too long ("to the end"). */
const BYTES_MAX = 5 * 1024 * 1024 * 1024;

/** Time for the bytes of a call on top of what a call without any may take. */
export const transferMs = (bytes: number): number => Math.ceil(Math.min(bytes, BYTES_MAX) / BYTES_PER_MS_MIN);

export class DeadlineStore extends StoreDecorator {
  readonly #attemptTimeoutMs: number;

  constructor(inner: ObjectStore, options: { readonly attemptTimeoutMs: number }) {
    super(inner);
    this.#attemptTimeoutMs = options.attemptTimeoutMs;
  }

  protected around<T, O extends CallOptions>(call: StoreCall, options: O, run: (options: O) => Promise<T>): Promise<T> {
    const bytes = call.bytes ?? (call.operation === 'get' ? BYTES_UNKNOWN : 0);
    return withAbort(this.#attemptTimeoutMs + transferMs(bytes), call, options, async (o) => {
      // Within the deadline: a place that is held is a store that does not answer.
      await failpoint(PLACES[call.operation]);
      const result = await run(o);
      if (call.operation === 'put') await failpoint('object-store.put-applied');
      return result;
    });
  }
}

const PLACES: Readonly<Record<StoreOperation, FailpointName>> = {
  get: 'object-store.get',
  stream: 'object-store.get',
  head: 'object-store.get',
  put: 'object-store.put',
  list: 'object-store.list',
  delete: 'object-store.delete',
};

/** Runs `run` with a signal that fires after `ms` or with the caller's; rejects with UNAVAILABLE then, whether `run` listens or not. */
export async function withAbort<T, O extends CallOptions>(
  ms: number,
  { operation, key }: StoreCall,
  options: O,
  run: (options: O) => Promise<T>,
): Promise<T> {
  const outer = options.signal;
  const controller = new AbortController();
  const { promise: gaveUp, reject } = Promise.withResolvers<never>();
  const stop = (why: string, cause?: unknown): void => {
    // Decided before the store below hears of it: its own error for the abort must not hide ours.
    reject(new LakebaseError('UNAVAILABLE', `${operation} of object ${key}: ${why}`, { cause }));
    controller.abort();
  };
  const onAbort = (): void => stop('the call was ended', outer?.reason);
  if (outer?.aborted === true) onAbort();
  outer?.addEventListener('abort', onAbort, { once: true });
  const timer = setTimeout(() => stop(`no answer after ${ms} ms`), ms);
  try {
    return await Promise.race([controller.signal.aborted ? gaveUp : run({ ...options, signal: controller.signal }), gaveUp]);
  } finally {
    clearTimeout(timer);
    // The body of a stream is not watched over here, but in retrying-store.ts.
    outer?.removeEventListener('abort', onAbort);
  }
}
