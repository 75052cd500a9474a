/** A worker thread for work on layers: jobs of all timelines queue for it, so that they never take more than one core. The process has one that
 *  merges and one that flushes, which must not wait for a long merge. A worker that dies fails its jobs (they are repeated after the next
 *  flush) and is started again with the next one; one without work for a while ends, and its memory with it. When a project is locked the
 *  worker ends at once, as nothing else is sure to leave no trace; jobs of others fail with UNAVAILABLE and are repeated. */
import { Worker } from 'node:worker_threads';
import { type ErrorCode, LakebaseError, errorMessage } from '@lakebase/base';
import type { LayerDescriptor } from '@lakebase/layers';
import type { StorageJob } from './compaction-job.ts';
import type { MoreKeys } from './compaction-keys.ts';

interface Answer {
  readonly id: number;
  readonly layers?: LayerDescriptor[];
  /** It needs this many fresh keys. */
  readonly more?: number;
  readonly code?: ErrorCode;
  readonly message?: string;
}
interface Pending {
  readonly project: string;
  readonly more: MoreKeys | undefined;
  resolve(layers: LayerDescriptor[]): void;
  reject(error: Error): void;
}

const IDLE_MS = 60_000;

export class Compactor {
  #worker: Worker | undefined;
  #nextId = 1;
  readonly #pending = new Map<number, Pending>();

  #idle: NodeJS.Timeout | undefined;

  readonly run = (job: StorageJob, more?: MoreKeys): Promise<LayerDescriptor[]> =>
    new Promise((resolve, reject) => {
      const id = this.#nextId++;
      this.#pending.set(id, { resolve, reject, project: job.project, more });
      this.#start().postMessage({ id, job }, [job.keys.deks.buffer]);
    });

  async close(): Promise<void> {
    clearTimeout(this.#idle);
    const worker = this.#worker;
    this.#worker = undefined;
    this.#failAll(new LakebaseError('CLOSED', 'the pageserver is shutting down'));
    await worker?.terminate();
  }

  /** Ends the worker; resolves when its memory is given back. */
  async forget(project: string, error: LakebaseError): Promise<void> {
    clearTimeout(this.#idle);
    const worker = this.#worker;
    this.#worker = undefined;
    const again = new LakebaseError('UNAVAILABLE', 'the worker was replaced; the job is repeated');
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    await worker?.terminate();
    for (const p of pending) p.reject(p.project === project ? error : again);
  }

  async #answerWithKeys(worker: Worker, id: number, count: number): Promise<void> {
    const pending = this.#pending.get(id);
    try {
      if (pending?.more === undefined) throw new LakebaseError('UNAVAILABLE', 'no keys for this job');
      const keys = await pending.more(count);
      worker.postMessage({ id, keys }, [keys.deks.buffer]);
    } catch (error) {
      worker.postMessage({ id, keys: errorMessage(error) });
    }
  }

  #start(): Worker {
    if (this.#worker !== undefined) return this.#worker;
    const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
    const worker = new Worker(new URL(`./compaction-worker.${extension}`, import.meta.url));
    worker.unref();
    worker.on('message', (answer: Answer) => {
      if (answer.more !== undefined) return void this.#answerWithKeys(worker, answer.id, answer.more);
      const pending = this.#pending.get(answer.id);
      this.#pending.delete(answer.id);
      this.#armIdle(worker);
      if (answer.layers !== undefined) pending?.resolve(answer.layers);
      else pending?.reject(new LakebaseError(answer.code ?? 'INTERNAL', answer.message ?? 'compaction failed'));
    });
    worker.on('error', (error) => this.#failAll(error instanceof Error ? error : new Error(String(error))));
    worker.on('exit', () => {
      if (this.#worker !== worker) return;
      this.#worker = undefined;
      this.#failAll(new LakebaseError('INTERNAL', 'the compaction worker ended'));
    });
    this.#worker = worker;
    return worker;
  }

  #armIdle(worker: Worker): void {
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => {
      if (this.#pending.size > 0 || this.#worker !== worker) return;
      this.#worker = undefined;
      void worker.terminate();
    }, IDLE_MS);
    this.#idle.unref();
  }

  #failAll(error: Error): void {
    for (const p of this.#pending.values()) p.reject(error);
    this.#pending.clear();
  }
}
