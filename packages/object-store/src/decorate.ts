/** The decorators in the order that makes sense: retries outside (a delay takes no slot), then the limit, then the deadline of one request (waiting
 *  for a slot does not count against it), then the observer (every request is counted). */
import { DeadlineStore } from './deadline-store.ts';
import { LimitedStore } from './limited-store.ts';
import type { ObjectStore } from './object-store.ts';
import { ObservedStore, type StoreObserver } from './observed-store.ts';
import { RetryingStore, type RetryOptions } from './retrying-store.ts';

export interface DecorationOptions extends Pick<RetryOptions, 'baseMs' | 'maxMs' | 'random' | 'onRetry'> {
  readonly attemptTimeoutMs?: number | undefined;
  readonly deadlineMs?: number | undefined;
  readonly readsMax?: number | undefined;
  readonly writesMax?: number | undefined;
  readonly observer?: StoreObserver;
}

export interface DecoratedStore {
  readonly store: ObjectStore;
  readonly limited: LimitedStore;
}

export function decorate(bare: ObjectStore, options: DecorationOptions): DecoratedStore {
  const { attemptTimeoutMs = 10_000, deadlineMs = 60_000, readsMax = 32, writesMax = 8, observer, ...retry } = options;
  const observed = observer === undefined ? bare : new ObservedStore(bare, observer);
  const limited = new LimitedStore(new DeadlineStore(observed, { attemptTimeoutMs }), { readsMax, writesMax });
  return { limited, store: new RetryingStore(limited, { ...retry, deadlineMs, idleMs: attemptTimeoutMs }) };
}
