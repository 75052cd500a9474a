/** At most so many requests at a time, reads and writes counted apart: uploads in the background never keep a read waiting. In the order of arrival.
 *  A stream counts until its first byte. */
import { LakebaseError, Slots } from '@lakebase/base';
import type { CallOptions, ObjectStore } from './object-store.ts';
import { type StoreCall, StoreDecorator } from './store-decorator.ts';

export class LimitedStore extends StoreDecorator {
  readonly #reads: Slots;
  readonly #writes: Slots;

  constructor(inner: ObjectStore, options: { readonly readsMax: number; readonly writesMax: number }) {
    super(inner);
    this.#reads = new Slots(options.readsMax);
    this.#writes = new Slots(options.writesMax);
  }

  /** Requests that wait for their turn. */
  get waiting(): { readonly reads: number; readonly writes: number } {
    return { reads: this.#reads.waiting, writes: this.#writes.waiting };
  }

  protected async around<T, O extends CallOptions>(call: StoreCall, options: O, run: (options: O) => Promise<T>): Promise<T> {
    const slots = call.operation === 'put' || call.operation === 'delete' ? this.#writes : this.#reads;
    await slots.take(
      options.signal,
      () => new LakebaseError('UNAVAILABLE', `${call.operation} of object ${call.key}: ended while it waited for its turn`),
    );
    try {
      return await run(options);
    } finally {
      slots.give();
    }
  }
}
