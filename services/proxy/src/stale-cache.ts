/** A cache for answers of another service: fresh for a moment, and good for minutes when the service does not answer.
 *
 *  Invariants:
 *  - Requests for one key that run at the same time share one call.
 *  - An answer older than `freshMs` is used only when the call fails for want of an answer; a refusal (not found, denied) replaces it.
 *  - At most `entriesMax` keys; the oldest goes first. */
import { type ErrorCode, LakebaseError, backoffDelay, sleep } from '@lakebase/base';

export interface StaleCacheOptions {
  readonly freshMs: number;
  readonly staleMs: number;
  /** With an old answer at hand, wait no longer than this for a new one. */
  readonly patienceMs: number;
  /** Without one, keep calling for so long while nobody is there to answer: a service that is being restarted. */
  readonly persistMs?: number;
  readonly entriesMax?: number;
  readonly now?: () => number;
}

interface Entry<V> {
  readonly value: V;
  readonly at: number;
}

const NO_ANSWER: ReadonlySet<ErrorCode> = new Set(['UNAVAILABLE', 'TIMEOUT', 'CLOSED']);
export const isNoAnswer = (error: unknown): boolean => error instanceof LakebaseError && NO_ANSWER.has(error.code);

/** Nobody was there, as opposed to somebody saying that it cannot be done now (that error has no cause on this side). */
export const isUnreachable = (error: unknown): boolean => isNoAnswer(error) && (error as LakebaseError).cause !== undefined;

/** Calls until it is answered, or `persistMs` have passed. */
export async function persistently<V>(call: () => Promise<V>, persistMs: number): Promise<V> {
  const deadline = performance.now() + persistMs;
  for (let attempt = 0; ; attempt++) {
    try {
      return await call();
    } catch (error) {
      const delay = backoffDelay(attempt, { maxMs: 1_000 });
      if (!isUnreachable(error) || performance.now() + delay >= deadline) throw error;
      await sleep(delay);
    }
  }
}

export class StaleCache<V> {
  readonly #options: Required<StaleCacheOptions>;
  readonly #entries = new Map<string, Entry<V>>();
  readonly #calls = new Map<string, Promise<V>>();

  constructor(options: StaleCacheOptions) {
    this.#options = { entriesMax: 10_000, persistMs: 0, now: () => performance.now(), ...options };
  }

  async get(key: string, load: () => Promise<V>): Promise<V> {
    const entry = this.#entries.get(key);
    const age = entry === undefined ? Infinity : this.#options.now() - entry.at;
    if (entry !== undefined && age < this.#options.freshMs) return entry.value;
    if (entry === undefined || age > this.#options.staleMs) return this.#load(key, () => persistently(load, this.#options.persistMs));
    const call = this.#load(key, load);
    try {
      return await orAfter(call, this.#options.patienceMs, entry.value);
    } catch (error) {
      if (isNoAnswer(error)) return entry.value;
      throw error;
    }
  }

  peek(key: string): V | undefined {
    return this.#entries.get(key)?.value;
  }

  set(key: string, value: V): void {
    this.#entries.delete(key);
    this.#entries.set(key, { value, at: this.#options.now() });
    if (this.#entries.size > this.#options.entriesMax) this.#entries.delete(this.#entries.keys().next().value as string);
  }

  delete(key: string): void {
    this.#entries.delete(key);
  }

  #load(key: string, load: () => Promise<V>): Promise<V> {
    const running = this.#calls.get(key);
    if (running !== undefined) return running;
    const call = load().then(
      (value) => {
        this.#calls.delete(key);
        this.set(key, value);
        return value;
      },
      (error: unknown) => {
        this.#calls.delete(key);
        if (!isNoAnswer(error)) this.#entries.delete(key);
        throw error;
      },
    );
    this.#calls.set(key, call);
    return call;
  }
}

async function orAfter<V>(call: Promise<V>, ms: number, otherwise: V): Promise<V> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<V>((resolve) => {
    timer = setTimeout(() => resolve(otherwise), ms);
  });
  // The call may still fail after we stopped waiting; nobody else may be there to hear it.
  call.catch(() => {});
  try {
    return await Promise.race([call, late]);
  } finally {
    clearTimeout(timer);
  }
}
