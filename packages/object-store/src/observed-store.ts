/** Tells an observer of every request, one by one: what is counted is what a provider counts. */
import { type ErrorCode, LakebaseError } from '@lakebase/base';
import type { CallOptions, ObjectBytes, ObjectInfo, ObjectStore } from './object-store.ts';
import { type StoreCall, StoreDecorator, type StoreOperation } from './store-decorator.ts';

export interface StoreObservation {
  readonly operation: StoreOperation;
  readonly outcome: 'ok' | ErrorCode;
  /** Of a stream: to its first byte. */
  readonly seconds: number;
  /** Bytes of objects that travelled; none for a failure. */
  readonly bytes: number;
}
export type StoreObserver = (observation: StoreObservation) => void;

export class ObservedStore extends StoreDecorator {
  readonly #observer: StoreObserver;

  constructor(inner: ObjectStore, observer: StoreObserver) {
    super(inner);
    this.#observer = observer;
  }

  protected async around<T, O extends CallOptions>(call: StoreCall, options: O, run: (options: O) => Promise<T>): Promise<T> {
    const { operation } = call;
    const started = performance.now();
    const tell = (outcome: 'ok' | ErrorCode, bytes: number): void =>
      this.#observer({ operation, outcome, bytes, seconds: (performance.now() - started) / 1_000 });
    try {
      const result = await run(options);
      const bytes =
        operation === 'get'
          ? (result as ObjectBytes).bytes.length
          : operation === 'stream'
            ? (result as ObjectInfo).size
            : operation === 'put'
              ? (call.bytes ?? 0)
              : 0;
      tell('ok', bytes);
      return result;
    } catch (error) {
      tell(error instanceof LakebaseError ? error.code : 'INTERNAL', 0);
      throw error;
    }
  }
}
