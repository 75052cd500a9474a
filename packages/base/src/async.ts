/** Small concurrency helpers that take an AbortSignal and never leak a listener. */
import { LakebaseError } from './errors.ts';

export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) return reject(signal.reason);
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort);
      resolve();
    }, ms);
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

/** Exponential delays with full jitter, in milliseconds: 50, 100, 200 … capped. */
export function backoffDelay(attempt: number, options: { baseMs?: number; maxMs?: number; random?: () => number } = {}): number {
  const { baseMs = 50, maxMs = 5_000, random = Math.random } = options;
  return Math.min(maxMs, baseMs * 2 ** Math.min(attempt, 20)) * (0.5 + random() / 2);
}

/** Rejects with TIMEOUT when `promise` has not settled after `ms`. The work itself is not cancelled. */
export async function withDeadline<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        timer = setTimeout(() => reject(new LakebaseError('TIMEOUT', `${what}: no answer after ${ms} ms`)), ms);
      }),
    ]);
  } finally {
    clearTimeout(timer);
  }
}

/** At most so many at a time, in the order of arrival. */
export class Slots {
  #free: number;
  readonly #queue = new Set<() => void>();

  constructor(free: number) {
    this.#free = free;
  }

  get waiting(): number {
    return this.#queue.size;
  }

  /** Resolves when it is the caller's turn; rejects with what `ended` makes when the signal comes first. */
  take(signal?: AbortSignal, ended: () => unknown = () => signal?.reason): Promise<void> {
    if (this.#free > 0) {
      this.#free--;
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        this.#queue.delete(go);
        reject(ended());
      };
      const go = (): void => {
        signal?.removeEventListener('abort', onAbort);
        resolve();
      };
      if (signal?.aborted === true) return onAbort();
      signal?.addEventListener('abort', onAbort, { once: true });
      this.#queue.add(go);
    });
  }

  give(): void {
    const [next] = this.#queue;
    if (next === undefined) {
      this.#free++;
      return;
    }
    this.#queue.delete(next);
    next();
  }

  async use<T>(work: () => Promise<T>): Promise<T> {
    await this.take();
    try {
      return await work();
    } finally {
      this.give();
    }
  }
}

/** Runs tasks one at a time in the order given. */
export class SerialQueue {
  #tail: Promise<unknown> = Promise.resolve();

  run<T>(task: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(task, task);
    this.#tail = result.catch(() => {});
    return result;
  }
}
