/** The process's one maintenance worker: jobs of all timelines queue for it, so that compaction never takes more than one core.
 *  A worker that dies fails its jobs (they are repeated after the next flush) and is started again with the next one. */
import { Worker } from 'node:worker_threads';
import { LakebaseError, type ErrorCode } from '@lakebase/base';
import type { LayerDescriptor } from '@lakebase/layers';
import type { CompactionJob } from './compaction-job.ts';

interface Answer {
  readonly id: number;
  readonly layers?: LayerDescriptor[];
  readonly code?: ErrorCode;
  readonly message?: string;
}
interface Pending {
  resolve(layers: LayerDescriptor[]): void;
  reject(error: Error): void;
}

export class Compactor {
  #worker: Worker | undefined;
  #nextId = 1;
  readonly #pending = new Map<number, Pending>();

  readonly run = (job: CompactionJob): Promise<LayerDescriptor[]> =>
    new Promise((resolve, reject) => {
      const id = this.#nextId++;
      this.#pending.set(id, { resolve, reject });
      this.#start().postMessage({ id, job });
    });

  async close(): Promise<void> {
    const worker = this.#worker;
    this.#worker = undefined;
    this.#failAll(new LakebaseError('CLOSED', 'the pageserver is shutting down'));
    await worker?.terminate();
  }

  #start(): Worker {
    if (this.#worker !== undefined) return this.#worker;
    const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
    const worker = new Worker(new URL(`./compaction-worker.${extension}`, import.meta.url));
    worker.unref();
    worker.on('message', (answer: Answer) => {
      const pending = this.#pending.get(answer.id);
      this.#pending.delete(answer.id);
      if (answer.layers !== undefined) pending?.resolve(answer.layers);
      else pending?.reject(new LakebaseError(answer.code ?? 'INTERNAL', answer.message ?? 'compaction failed'));
    });
    worker.on('error', (error) => this.#failAll(error instanceof Error ? error : new Error(String(error))));
    worker.on('exit', () => {
      if (this.#worker === worker) this.#worker = undefined;
      this.#failAll(new LakebaseError('INTERNAL', 'the compaction worker ended'));
    });
    this.#worker = worker;
    return worker;
  }

  #failAll(error: Error): void {
    for (const p of this.#pending.values()) p.reject(error);
    this.#pending.clear();
  }
}
