/** Data keys of one background job: those of the layers it reads, and fresh ones for what it writes. They travel to the worker thread in one
 *  buffer that is handed over, not copied, and are zeros when the job is over.
 *  A job does not know beforehand how many files it will write: {@link JobKeys.reserve} asks for more. */
import { LakebaseError, isCode } from '@lakebase/base';
import { offHeap } from '@lakebase/bytes';
import { type AesObjectKey, CIPHER_AES_256_GCM, type ObjectKey, aesObjectKey, copySecret, plainProvider, wipe } from '@lakebase/envelope';
import type { ProjectKeys } from '@lakebase/keys';
import { type ObjectKeys, keyFromText, keyToText } from '@lakebase/layers';

const KEY_BYTES = 32;
/** Fresh keys a job starts with, and gets when it has none left. */
export const FRESH_PER_JOB = 8;

/** As a message. References (base64) are no secret; `deks` holds one key for each, in order: first those to open with, then the fresh ones. */
export interface KeyMessage {
  /** Encryption is switched off (test builds). */
  readonly plain: boolean;
  readonly load: readonly string[];
  /** References that do not unwrap: their layers are damaged, the others are not. */
  readonly damaged: readonly string[];
  readonly fresh: readonly string[];
  readonly deks: Uint8Array<ArrayBuffer>;
}

/** Takes `fresh` new keys and copies of those of `wanted`, which are loaded if need be. */
export async function packKeys(keys: ProjectKeys, wanted: readonly string[], fresh: number): Promise<KeyMessage> {
  await Promise.all([keys.load(wanted.map(keyFromText)), keys.reserve(fresh)]);
  const damaged = wanted.filter((text) => isDamaged(keys, keyFromText(text)));
  const load = damaged.length === 0 ? wanted : wanted.filter((text) => !damaged.includes(text));
  const deks = offHeap((load.length + fresh) * KEY_BYTES);
  for (const [i, text] of load.entries()) {
    const dek = keys.dek(keyFromText(text));
    if (dek === undefined) throw new LakebaseError('UNAVAILABLE', 'a key was dropped while a job was prepared; it is repeated');
    deks.set(dek, i * KEY_BYTES);
  }
  const taken: string[] = [];
  for (let i = 0; i < fresh; i++) {
    const { reference, dek } = keys.take();
    deks.set(dek, (load.length + i) * KEY_BYTES);
    wipe(dek);
    taken.push(keyToText(reference));
  }
  return { plain: taken[0] === '', load, damaged, fresh: taken, deks };
}

/** It was loaded and did not unwrap: asking for its cipher says so. */
function isDamaged(keys: ProjectKeys, reference: Buffer): boolean {
  if (keys.dek(reference) !== undefined) return false;
  try {
    keys.restore(CIPHER_AES_256_GCM, reference);
    return false;
  } catch (error) {
    return isCode(error, 'CORRUPT');
  }
}

export type MoreKeys = (count: number) => Promise<KeyMessage>;

export class JobKeys implements ObjectKeys {
  readonly #plain: boolean;
  readonly #more: MoreKeys | undefined;
  readonly #known = new Map<string, Buffer>();
  readonly #damaged = new Set<string>();
  #fresh: { reference: Buffer; dek: Buffer }[] = [];
  readonly #made: AesObjectKey[] = [];

  constructor(message: KeyMessage, more?: MoreKeys) {
    this.#plain = message.plain;
    this.#more = more;
    this.#take(message);
  }

  #take({ plain, load, damaged, fresh, deks }: KeyMessage): void {
    for (const reference of damaged) this.#damaged.add(reference);
    if (!plain) {
      const dekAt = (i: number): Buffer => copySecret(deks.subarray(i * KEY_BYTES, (i + 1) * KEY_BYTES));
      for (const [i, reference] of load.entries()) this.#known.set(reference, dekAt(i));
      for (const [i, reference] of fresh.entries()) this.#fresh.push({ reference: keyFromText(reference), dek: dekAt(load.length + i) });
    }
    deks.fill(0);
  }

  create(): ObjectKey {
    if (this.#plain) return plainProvider.create();
    const next = this.#fresh.shift();
    if (next === undefined) throw new LakebaseError('UNAVAILABLE', 'the job has no fresh key left');
    return this.#keep(aesObjectKey(next.dek, next.reference));
  }

  restore(...args: [number, Buffer] | [string, number, Buffer]): ObjectKey {
    const [algorithm, reference] = args.slice(-2) as [number, Buffer];
    if (this.#plain) return plainProvider.restore(algorithm, reference);
    const dek = this.#known.get(keyToText(reference));
    if (dek === undefined && this.#damaged.has(keyToText(reference)))
      throw new LakebaseError(
        'CORRUPT',
        'the key reference of this layer does not unwrap: it was changed, belongs elsewhere, or its KEK was destroyed',
      );
    if (dek === undefined) throw new LakebaseError('UNAVAILABLE', 'the job was not given the key of this layer');
    return this.#keep(aesObjectKey(copySecret(dek), reference));
  }

  #keep(key: AesObjectKey): AesObjectKey {
    this.#made.push(key);
    return key;
  }

  async reserve(count: number): Promise<void> {
    if (this.#plain || this.#fresh.length >= count) return;
    if (this.#more === undefined) throw new LakebaseError('UNAVAILABLE', 'the job has no fresh key left');
    this.#take(await this.#more(Math.max(count, FRESH_PER_JOB)));
  }

  async load(): Promise<void> {}

  wipe(): void {
    wipe(...this.#known.values(), ...this.#fresh.map((f) => f.dek));
    this.#known.clear();
    this.#fresh = [];
    for (const key of this.#made.splice(0)) key.wipe();
  }
}
