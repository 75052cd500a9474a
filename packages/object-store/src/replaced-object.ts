/** An object that one writer replaces again and again, such as an index.
 *
 *  A put that got no answer may be applied much later: a server that stood still finds the whole request in its socket when it goes on. Without a
 *  condition it would then bring back an old version over newer ones. Here every put names the version it replaces, so an old request fails
 *  once a newer version is there. Versions have to differ from all before them, as sealed ones do: some providers' tags are hashes of the content.
 *  Invariant: when put() resolves, no earlier put through this instance can be applied any more. Another instance (another process) that writes the
 *  same name is not kept out: it is one writer at a time, by other means. */
import { LakebaseError } from '@lakebase/base';
import type { CallOptions, ObjectStore, ObjectTag, PutSource } from './object-store.ts';

/** Each is an old request of ours that came through in between. */
const CONFLICTS_MAX = 20;

export class ReplacedObject {
  readonly key: string;
  readonly #store: ObjectStore;
  /** Null: not there. Undefined: not known. */
  #tag: ObjectTag | null | undefined;

  constructor(store: ObjectStore, key: string) {
    this.#store = store;
    this.key = key;
  }

  async put(source: PutSource, options: CallOptions = {}): Promise<void> {
    for (let conflicts = 0; ; conflicts++) {
      const tag = this.#tag === undefined ? await this.#find(options) : this.#tag;
      // Until it is answered, nobody knows.
      this.#tag = undefined;
      try {
        this.#tag = await this.#store.put(this.key, source, { ...options, ...(tag === null ? { ifAbsent: true } : { ifMatch: tag }) });
        return;
      } catch (error) {
        const overtaken = error instanceof LakebaseError && (error.code === 'CONFLICT' || error.code === 'ALREADY_EXISTS');
        if (!overtaken || conflicts === CONFLICTS_MAX) throw error;
      }
    }
  }

  async #find(options: CallOptions): Promise<ObjectTag | null> {
    try {
      return (await this.#store.head(this.key, options)).tag;
    } catch (error) {
      if (error instanceof LakebaseError && error.code === 'NOT_FOUND') return null;
      throw error;
    }
  }
}
