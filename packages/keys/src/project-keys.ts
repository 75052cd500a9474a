/** Data keys of one project in one storage process: a pool of fresh ones, a cache of unwrapped ones, and every cipher made from either.
 *  Invariants
 *  - After {@link ProjectKeyStore.lock} returns, every buffer of key material this object ever made and still knows of is zeros, and every
 *    cipher made from one throws; an unwrap that was under way is thrown away when it arrives.
 *  - A fresh key is handed out once.
 *  - Copies: the pool and the cache own theirs, every {@link AesObjectKey} owns its own. */
import { FRESH_DEKS_MAX, REFERENCES_MAX } from '@lakebase/api';
import { LakebaseError, type Logger, backoffDelay, errorMessage, sleep, withDeadline } from '@lakebase/base';
import { AesObjectKey, CIPHER_AES_256_GCM, type CipherProvider, type ObjectKey, aesObjectKey, copySecret, wipe } from '@lakebase/envelope';

export interface FreshKey {
  readonly reference: Buffer;
  /** The receiver's own copy, to wipe when done. */
  readonly dek: Buffer;
}

export interface ProjectKeys extends CipherProvider {
  readonly project: string;
  readonly usable: boolean;
  /** Why it is not usable: the error to answer with. */
  readonly locked: LakebaseError | undefined;
  /** How often it was locked. What was opened before the last time is of no use, also when the project is usable again. */
  readonly locks: number;
  readonly kekVersion: number;
  /** Waits until the project is known, usable and has fresh keys at hand; KEY_REVOKED at once when it is locked, UNAVAILABLE after a deadline. */
  ready(timeoutMs?: number): Promise<void>;
  /** Waits for at least `count` fresh keys. The pool refills itself below half. */
  reserve(count: number): Promise<void>;
  /** A fresh key for somebody else, a worker thread say. It is in the cache too. UNAVAILABLE when the pool is empty. */
  take(): FreshKey;
  /** Unwraps what is not cached yet. One that does not unwrap fails when it is restored, not here: it must not keep others shut. */
  load(references: readonly Buffer[]): Promise<void>;
  /** The cached key of a loaded reference. Not a copy: zeros after a lock. */
  dek(reference: Buffer): Buffer | undefined;
  /** Under the newest KEK, in the order given; a reference that does not unwrap comes back as it was. */
  rewrap(references: readonly Buffer[]): Promise<Buffer[]>;
}

/** Answers of unwrap and rewrap hold zeros in the place of a reference that does not unwrap.
 *  What makes and unwraps keys: the key manager, or an in-memory one in tests. */
export interface KeyBackend {
  deks(count: number): Promise<FreshKey[]>;
  unwrap(references: readonly Buffer[]): Promise<Buffer[]>;
  rewrap(references: readonly Buffer[]): Promise<Buffer[]>;
}

export interface ProjectKeyStoreOptions {
  readonly project: string;
  readonly backend: KeyBackend;
  readonly log: Logger;
  readonly poolSize: number;
  readonly cacheSize: number;
  /** Why the project is locked before the first word about it. */
  readonly locked: LakebaseError | undefined;
}

const READY_MS = 10_000;
const REFILL_RETRY = { baseMs: 50, maxMs: 2_000 };
/** Past this many weak references to ciphers those that are gone are dropped from the list. */
const SWEEP_MIN = 1_024;

export class ProjectKeyStore implements ProjectKeys {
  readonly project: string;
  readonly #o: ProjectKeyStoreOptions;
  #locked: LakebaseError | undefined;
  #locks = 0;
  #kekVersion = 0;
  /** Grows with every lock: what was asked for before one is not kept. */
  #epoch = 0;
  #pool: FreshKey[] = [];
  /** Least recently used first. */
  readonly #cache = new Map<string, Buffer>();
  /** References that were asked for and did not unwrap. */
  readonly #damaged = new Set<string>();
  #objects: WeakRef<AesObjectKey>[] = [];
  #sweepAt = SWEEP_MIN;
  #target: number;
  #filling = false;
  #waiting: { count: number; resolve: () => void; reject: (error: unknown) => void }[] = [];
  #unlocked = Promise.withResolvers<void>();

  constructor(options: ProjectKeyStoreOptions) {
    this.#o = options;
    this.project = options.project;
    this.#locked = options.locked;
    this.#target = options.poolSize;
    if (options.locked === undefined) this.#unlocked.resolve();
  }

  get usable(): boolean {
    return this.#locked === undefined;
  }
  get locked(): LakebaseError | undefined {
    return this.#locked;
  }
  get locks(): number {
    return this.#locks;
  }
  get kekVersion(): number {
    return this.#kekVersion;
  }
  /** Sizes, for metrics and tests. */
  get held(): { readonly pool: number; readonly cached: number } {
    return { pool: this.#pool.length, cached: this.#cache.size };
  }

  create(): ObjectKey {
    const { dek, reference } = this.take();
    return this.#track(new AesObjectKey(dek, reference));
  }

  restore(algorithm: number, reference: Buffer): ObjectKey {
    this.#check();
    if (algorithm !== CIPHER_AES_256_GCM)
      throw new LakebaseError('UNSUPPORTED', `cipher algorithm ${algorithm} is not known to this version, or not allowed`);
    const dek = this.dek(reference);
    if (dek === undefined && this.#damaged.has(nameOf(reference)))
      throw new LakebaseError(
        'CORRUPT',
        'the key reference of this object does not unwrap: it was changed, belongs elsewhere, or its KEK was destroyed',
      );
    if (dek === undefined) throw new LakebaseError('UNAVAILABLE', 'the key of this object was not loaded before it was opened');
    return this.#track(aesObjectKey(copySecret(dek), reference));
  }

  take(): FreshKey {
    this.#check();
    const fresh = this.#pool.shift();
    if (this.#pool.length < this.#target / 2) this.#fill();
    if (fresh === undefined) throw new LakebaseError('UNAVAILABLE', 'no fresh data key at hand; the pool is being filled');
    this.#keep(fresh.reference, fresh.dek);
    return { reference: fresh.reference, dek: copySecret(fresh.dek) };
  }

  async ready(timeoutMs: number = READY_MS): Promise<void> {
    if (this.#locked?.code === 'KEY_REVOKED') throw this.#locked;
    await withDeadline(this.#unlocked.promise, timeoutMs, `keys of project ${this.project}`).catch((cause: unknown) => {
      throw this.#locked ?? new LakebaseError('UNAVAILABLE', 'no keys in time', { cause });
    });
    await this.reserve(1, timeoutMs);
  }

  async reserve(count: number, timeoutMs: number = READY_MS): Promise<void> {
    this.#check();
    if (count > this.#target) this.#target = count;
    if (this.#pool.length >= count) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const entry = { count, resolve, reject };
    this.#waiting.push(entry);
    this.#fill();
    try {
      await withDeadline(promise, timeoutMs, `fresh data keys of project ${this.project}`);
    } catch (cause) {
      if (cause instanceof LakebaseError && cause.code !== 'TIMEOUT') throw cause;
      throw new LakebaseError('UNAVAILABLE', 'the key manager made no fresh data keys in time; it is asked again', { cause });
    } finally {
      this.#waiting = this.#waiting.filter((w) => w !== entry);
    }
  }

  async load(references: readonly Buffer[]): Promise<void> {
    this.#check();
    const wanted = new Map<string, Buffer>();
    for (const reference of references) if (this.dek(reference) === undefined) wanted.set(nameOf(reference), reference);
    const list = [...wanted.values()];
    for (let at = 0; at < list.length; at += REFERENCES_MAX) {
      const epoch = this.#epoch;
      const batch = list.slice(at, at + REFERENCES_MAX);
      const deks = await this.#o.backend.unwrap(batch);
      if (epoch !== this.#epoch || deks.length !== batch.length) {
        wipe(...deks);
        this.#check();
        throw new LakebaseError('UNAVAILABLE', 'the project was locked while its keys were loaded; load again');
      }
      for (const [i, dek] of deks.entries()) {
        const reference = batch[i] as Buffer;
        if (isZeros(dek)) this.#damaged.add(nameOf(reference));
        else this.#keep(reference, dek, references.length);
      }
    }
  }

  dek(reference: Buffer): Buffer | undefined {
    const name = nameOf(reference);
    const dek = this.#cache.get(name);
    if (dek === undefined) return undefined;
    this.#cache.delete(name);
    this.#cache.set(name, dek);
    return dek;
  }

  async rewrap(references: readonly Buffer[]): Promise<Buffer[]> {
    const out: Buffer[] = [];
    for (let at = 0; at < references.length; at += REFERENCES_MAX) {
      this.#check();
      const batch = references.slice(at, at + REFERENCES_MAX);
      for (const [i, fresh] of (await this.#o.backend.rewrap(batch)).entries()) {
        if (isZeros(fresh)) {
          out.push(batch[i] as Buffer); // damaged: stays what it is
          continue;
        }
        out.push(fresh);
        const dek = this.#cache.get(nameOf(batch[i] as Buffer));
        if (dek !== undefined && !this.#cache.has(nameOf(fresh))) this.#keep(fresh, copySecret(dek));
      }
    }
    return out;
  }

  /** From the watch. A newer KEK: fresh keys of the old one are not handed out any more. */
  setKekVersion(version: number): void {
    let refill = this.#waiting.length > 0;
    if (version > this.#kekVersion && this.#kekVersion > 0) {
      this.#epoch++; // also those that are on their way
      // Whoever takes keys here does so without waiting: new ones are fetched before somebody finds the pool empty.
      refill ||= this.#pool.length > 0;
      this.#dropPool();
    }
    this.#kekVersion = version;
    if (refill) this.#fill();
  }

  unlock(): void {
    if (this.#locked === undefined) return;
    this.#locked = undefined;
    this.#unlocked.resolve();
  }

  lock(error: LakebaseError): void {
    this.#epoch++;
    this.#locks++;
    if (this.#locked === undefined) this.#unlocked = Promise.withResolvers<void>();
    this.#locked = error;
    this.#dropPool();
    for (const dek of this.#cache.values()) wipe(dek);
    this.#cache.clear();
    this.#damaged.clear();
    for (const reference of this.#objects) reference.deref()?.wipe();
    this.#objects = [];
    for (const waiting of this.#waiting.splice(0)) waiting.reject(error);
  }

  #check(): void {
    if (this.#locked !== undefined) throw new LakebaseError(this.#locked.code, this.#locked.message);
  }

  #dropPool(): void {
    for (const { dek } of this.#pool.splice(0)) wipe(dek);
  }

  #keep(reference: Buffer, dek: Buffer, atLeast = 0): void {
    const name = nameOf(reference);
    const old = this.#cache.get(name);
    if (old !== dek) wipe(old);
    this.#cache.set(name, dek);
    // A batch that was asked for together stays together, however large.
    for (const [first, oldest] of this.#cache) {
      if (this.#cache.size <= Math.max(this.#o.cacheSize, atLeast)) break;
      this.#cache.delete(first);
      wipe(oldest);
    }
  }

  #track(key: AesObjectKey): AesObjectKey {
    this.#objects.push(new WeakRef(key));
    if (this.#objects.length > this.#sweepAt) {
      this.#objects = this.#objects.filter((r) => r.deref() !== undefined);
      this.#sweepAt = Math.max(SWEEP_MIN, 2 * this.#objects.length);
    }
    return key;
  }

  #fill(): void {
    if (this.#filling) return;
    this.#filling = true;
    void this.#fillUp().finally(() => {
      this.#filling = false;
      if (this.#waiting.length > 0 && this.usable) this.#fill();
    });
  }

  async #fillUp(): Promise<void> {
    for (let attempt = 0; this.usable && this.#pool.length < this.#target; ) {
      const epoch = this.#epoch;
      try {
        const fresh = await this.#o.backend.deks(Math.min(FRESH_DEKS_MAX, this.#target - this.#pool.length));
        if (epoch !== this.#epoch) {
          wipe(...fresh.map((f) => f.dek));
          continue;
        }
        this.#pool.push(...fresh);
        attempt = 0;
      } catch (error) {
        if (attempt === 0) this.#o.log.warn({ project: this.project, err: errorMessage(error) }, 'no fresh data keys from the key manager');
        await sleep(backoffDelay(attempt++, REFILL_RETRY));
      }
      for (const waiting of this.#waiting) if (this.#pool.length >= waiting.count) waiting.resolve();
    }
  }
}

const nameOf = (reference: Buffer): string => reference.toString('latin1');

const isZeros = (bytes: Buffer): boolean => bytes.every((b) => b === 0);
