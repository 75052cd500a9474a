/** A store that fails, by a seed: what networks and providers do to requests (campaign F22, F23). Put it below the decorators. */
import { LakebaseError, sleep } from '@lakebase/base';
import { Readable } from 'node:stream';
import type {
  CallOptions,
  GetOptions,
  ListOptions,
  ListPage,
  ObjectBytes,
  ObjectInfo,
  ObjectStore,
  ObjectTag,
  PutOptions,
  PutSource,
} from '../object-store.ts';

/** Probabilities from 0 to 1. */
export interface Faults {
  /** UNAVAILABLE; nothing was done. */
  readonly errors?: number;
  /** RESOURCE_EXHAUSTED, as from 503 SlowDown; nothing was done. */
  readonly throttled?: number;
  /** UNAVAILABLE; the put or delete was done nevertheless. */
  readonly lostResponses?: number;
  /** UNAVAILABLE; the put is done before one of the next calls, whatever its caller has done meanwhile. */
  readonly latePuts?: number;
  /** A get or stream that ends early. */
  readonly truncated?: number;
  /** A get with a bit flipped: only a check of the content can find it. */
  readonly flipped?: number;
  /** A list as it was at its first call. */
  readonly staleLists?: number;
  /** A delete that is answered and not done. */
  readonly lostDeletes?: number;
  /** Every call takes from 0 to this long. */
  readonly latencyMsMax?: number;
}

export class FaultStore implements ObjectStore {
  readonly #inner: ObjectStore;
  readonly #random: () => number;
  readonly #lists = new Map<string, ListPage>();
  faults: Faults;
  /** How often each fault was injected. */
  readonly injected: Record<Exclude<keyof Faults, 'latencyMsMax'> | 'storm' | 'blackhole', number> = {
    errors: 0,
    throttled: 0,
    lostResponses: 0,
    latePuts: 0,
    truncated: 0,
    flipped: 0,
    staleLists: 0,
    lostDeletes: 0,
    storm: 0,
    blackhole: 0,
  };
  /** Puts that are on their way still. */
  readonly #late: (() => Promise<unknown>)[] = [];
  #storm = 0;
  #hole: { readonly promise: Promise<void>; readonly resolve: () => void } | undefined;

  constructor(inner: ObjectStore, options: Faults & { readonly seed: number }) {
    this.#inner = inner;
    this.#random = generator(options.seed);
    this.faults = options;
  }

  get location(): string {
    return this.#inner.location;
  }

  /** The next `calls` answer 503. */
  storm(calls: number): void {
    this.#storm = calls;
  }
  /** No call is answered until `release()`; those that came meanwhile are done then, if nobody ended them. */
  blackhole(): { release: () => void } {
    const hole = (this.#hole ??= Promise.withResolvers<void>());
    return {
      release: () => {
        this.#hole = undefined;
        hole.resolve();
      },
    };
  }

  async get(key: string, options: GetOptions = {}): Promise<ObjectBytes> {
    await this.#before(options);
    const answer = await this.#inner.get(key, options);
    if (answer.bytes.length > 0 && this.#hits('truncated'))
      return { ...answer, bytes: answer.bytes.subarray(0, Math.floor(this.#random() * answer.bytes.length)) };
    if (answer.bytes.length > 0 && this.#hits('flipped')) {
      const at = Math.floor(this.#random() * answer.bytes.length);
      answer.bytes[at] = (answer.bytes[at] as number) ^ (1 << Math.floor(this.#random() * 8));
    }
    return answer;
  }
  async stream(key: string, options: CallOptions = {}): Promise<ObjectInfo & { readonly body: Readable }> {
    await this.#before(options);
    const answer = await this.#inner.stream(key, options);
    if (answer.size === 0 || !this.#hits('truncated')) return answer;
    const left = Math.floor(this.#random() * answer.size);
    // Half of them end with an error, half as if that were all.
    return { ...answer, body: Readable.from(cut(answer.body, left, this.#random() < 0.5), { objectMode: false }) };
  }
  async put(key: string, source: PutSource, options: PutOptions = {}): Promise<ObjectTag> {
    await this.#before(options);
    if (this.#hits('latePuts')) {
      const { ifAbsent, ifMatch } = options;
      this.#late.push(() =>
        this.#inner.put(key, source, { ...(ifAbsent === undefined ? {} : { ifAbsent }), ...(ifMatch === undefined ? {} : { ifMatch }) }),
      );
      throw new LakebaseError('UNAVAILABLE', `injected: the put of ${key} is on its way`);
    }
    const tag = await this.#inner.put(key, source, options);
    if (this.#hits('lostResponses')) throw new LakebaseError('UNAVAILABLE', `injected: the answer to the put of ${key} was lost`);
    return tag;
  }
  async head(key: string, options: CallOptions = {}): Promise<ObjectInfo> {
    await this.#before(options);
    return this.#inner.head(key, options);
  }
  async list(prefix: string, options: ListOptions = {}): Promise<ListPage> {
    await this.#before(options);
    const name = JSON.stringify([prefix, options.after, options.limit]);
    const page = await this.#inner.list(prefix, options);
    const stale = this.#lists.get(name);
    if (stale !== undefined && this.#hits('staleLists')) return stale;
    if (stale === undefined) this.#lists.set(name, page);
    return page;
  }
  async delete(keys: readonly string[], options: CallOptions = {}): Promise<void> {
    await this.#before(options);
    if (this.#hits('lostDeletes')) return;
    await this.#inner.delete(keys, options);
    if (this.#hits('lostResponses')) throw new LakebaseError('UNAVAILABLE', 'injected: the answer to a delete was lost');
  }
  close(): Promise<void> {
    return this.#inner.close();
  }

  /** Every put that is on its way comes through. */
  async arriveAll(): Promise<void> {
    while (this.#late.length > 0) await this.#arrive();
  }

  async #arrive(): Promise<void> {
    const [put] = this.#late.splice(Math.floor(this.#random() * this.#late.length), 1);
    await put?.().catch(() => {}); // nobody waits for its answer
  }

  async #before(options: CallOptions): Promise<void> {
    if (this.#hole !== undefined) {
      this.injected.blackhole++;
      await this.#hole.promise;
      if (options.signal?.aborted === true) throw new LakebaseError('UNAVAILABLE', 'the call was ended');
    }
    // Any of them, in any order.
    while (this.#late.length > 0 && this.#random() < 0.3) await this.#arrive();
    const { latencyMsMax = 0 } = this.faults;
    if (latencyMsMax > 0) await sleep(this.#random() * latencyMsMax);
    if (this.#storm > 0) {
      this.#storm--;
      this.injected.storm++;
      throw new LakebaseError('RESOURCE_EXHAUSTED', 'injected: 503 slow down');
    }
    if (this.#hits('errors')) throw new LakebaseError('UNAVAILABLE', 'injected: 500');
    if (this.#hits('throttled')) throw new LakebaseError('RESOURCE_EXHAUSTED', 'injected: 503 slow down');
  }

  #hits(fault: Exclude<keyof Faults, 'latencyMsMax'>): boolean {
    const hit = this.#random() < (this.faults[fault] ?? 0);
    if (hit) this.injected[fault]++;
    return hit;
  }
}

async function* cut(body: Readable, left: number, fail: boolean): AsyncGenerator<Buffer> {
  for await (const chunk of body as AsyncIterable<Buffer>) {
    if (chunk.length >= left) {
      yield chunk.subarray(0, left);
      if (fail) throw new Error('injected: connection reset');
      return;
    }
    left -= chunk.length;
    yield chunk;
  }
}

/** mulberry32: a generator for tests, small and the same everywhere. */
function generator(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}
