/** What a read throws when bytes it needs are in the object store only. Reads are synchronous and never wait in their middle: whoever began one
 *  catches the miss, waits for the fetch and runs the read again from its start ({@link withRemote}).
 *  Invariant: what was fetched for a read stays local until that read has ended (pins), so it makes progress under any eviction. */
import { LakebaseError, withDeadline } from '@lakebase/base';

/** A layer whose bytes may have to be fetched, chunk by chunk. */
export interface RemoteLayer {
  /** Of the object, for messages. */
  readonly objectKey: string;
  /** No index names it any more: nobody needs to wait for it. */
  readonly discarded: boolean;
  pin(): void;
  unpin(): void;
  /** Resolves when these chunks are local. */
  fetch(chunks: Iterable<number>, background: boolean): Promise<void>;
}

export class RemoteMiss extends LakebaseError {
  readonly wants = new Map<RemoteLayer, Set<number>>();

  constructor(layer: RemoteLayer, chunks: Iterable<number>) {
    super('UNAVAILABLE', `object ${layer.objectKey} has to be fetched from the object store first`);
    this.wants.set(layer, new Set(chunks));
  }

  /** Without a stack: a miss is an answer, not a failure, and there are many of them. */
  static of(layer: RemoteLayer, chunks: Iterable<number>): RemoteMiss {
    const limit = Error.stackTraceLimit;
    Error.stackTraceLimit = 0;
    try {
      return new RemoteMiss(layer, chunks);
    } finally {
      Error.stackTraceLimit = limit;
    }
  }

  merge(other: RemoteMiss): this {
    for (const [layer, chunks] of other.wants) {
      const mine = this.wants.get(layer);
      if (mine === undefined) this.wants.set(layer, new Set(chunks));
      else for (const chunk of chunks) mine.add(chunk);
    }
    return this;
  }

  get chunks(): number {
    let n = 0;
    for (const chunks of this.wants.values()) n += chunks.size;
    return n;
  }
}

/** Adds `more` to what was missed before. */
export const bothMisses = (miss: RemoteMiss | undefined, more: RemoteMiss | undefined): RemoteMiss | undefined =>
  miss === undefined || more === undefined ? (miss ?? more) : miss.merge(more);

/** The miss that `run` throws; what else it throws is thrown. */
export function missOf(run: () => unknown): RemoteMiss | undefined {
  try {
    run();
    return undefined;
  } catch (error) {
    if (error instanceof RemoteMiss) return error;
    throw error;
  }
}

export const REMOTE_READ_MS = 30_000;
/** A read that still misses after so many fetches does not end: a defect, or a cache far too small. */
const FETCHES_MAX = 1_000;

/** The fetches of one read: pins what came until {@link done}. */
export class RemoteRead {
  readonly #pinned = new Set<RemoteLayer>();
  readonly #deadline: number;
  readonly #background: boolean;
  #fetches = 0;

  constructor(deadlineMs: number = REMOTE_READ_MS, background = false) {
    this.#deadline = performance.now() + deadlineMs;
    this.#background = background;
  }

  /** Resolves when the read may be tried again. UNAVAILABLE at the deadline, naming an object. */
  async fetch(miss: RemoteMiss): Promise<void> {
    const layers = [...miss.wants.keys()];
    const what = (layers[0] as RemoteLayer).objectKey;
    if (++this.#fetches > FETCHES_MAX)
      throw new LakebaseError('UNAVAILABLE', `object ${what} was fetched ${FETCHES_MAX} times for one read; enlarge layerCacheBytes`);
    for (const layer of layers) {
      if (this.#pinned.has(layer)) continue;
      this.#pinned.add(layer);
      layer.pin();
    }
    const fetched = Promise.all(
      [...miss.wants].map(([layer, chunks]) =>
        layer.fetch(chunks, this.#background).catch((error: unknown) => {
          // Merged away meanwhile: the read will look elsewhere.
          if (!layer.discarded) throw error;
        }),
      ),
    );
    const left = this.#deadline - performance.now();
    try {
      await withDeadline(fetched, Math.max(1, left), `object ${what}`);
    } catch (error) {
      if (error instanceof LakebaseError && error.code === 'TIMEOUT')
        throw new LakebaseError('UNAVAILABLE', `a read waited too long for object ${what} of the object store; try again`, {
          cause: error,
        });
      throw error;
    }
  }

  /** The read has gone on: what it has read so far it needs no more. */
  done(): void {
    for (const layer of this.#pinned) layer.unpin();
    this.#pinned.clear();
  }
}

/** Runs `read`, as often as it misses something. `read` must begin anew each time: what it saw before may have been replaced. */
export async function withRemote<T>(read: () => T, deadlineMs?: number, background?: boolean): Promise<T> {
  const first = attempt(read);
  if (!(first instanceof RemoteMiss)) return first;
  const remote = new RemoteRead(deadlineMs, background);
  try {
    for (let miss = first; ; ) {
      await remote.fetch(miss);
      const result = attempt(read);
      if (!(result instanceof RemoteMiss)) return result;
      miss = result;
    }
  } finally {
    remote.done();
  }
}

function attempt<T>(read: () => T): T | RemoteMiss {
  try {
    return read();
  } catch (error) {
    if (error instanceof RemoteMiss) return error;
    throw error;
  }
}
