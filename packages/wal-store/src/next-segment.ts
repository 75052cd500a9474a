/** The segment behind the current one, made ready in the background so that the appender need not wait for it.
 *  Invariant: without it WAL goes on all the same: preparing never fails for anybody else, and a full disk is not asked at every append. */
import { type Logger, errorMessage } from '@lakebase/base';
import { type SegmentDir, removeIfThere } from './segment-dir.ts';
import { SEGMENT_FILE_BYTES, type SegmentFile } from './segment-file.ts';
import { isDiskFull } from './segment-io.ts';

const RETRY_MS = 1_000;

export class NextSegment {
  readonly #files: SegmentDir;
  readonly #log: Logger;
  readonly #mayGrow: (() => void) | undefined;
  #file: SegmentFile | undefined;
  #preparing: Promise<void> | undefined;
  #againAt = 0;

  constructor(files: SegmentDir, log: Logger, mayGrow: (() => void) | undefined) {
    this.#files = files;
    this.#log = log;
    this.#mayGrow = mayGrow;
  }

  get number(): number | undefined {
    return this.#file?.header.segment;
  }
  get diskBytes(): number {
    return this.#file === undefined ? 0 : SEGMENT_FILE_BYTES;
  }
  /** Nothing is there, nothing under way, and the last failure is a while ago. */
  get due(): boolean {
    return this.#file === undefined && this.#preparing === undefined && performance.now() > this.#againAt;
  }
  /** What is under way. */
  get settled(): Promise<void> | undefined {
    return this.#preparing;
  }

  /** Writes the segment's header and zeros. Never rejects. `wanted`: by whom it was asked for. */
  prepare(number: number, wanted: () => boolean): Promise<void> {
    this.#preparing ??= this.#prepare(number, wanted).finally(() => {
      this.#preparing = undefined;
    });
    return this.#preparing;
  }

  async #prepare(number: number, wanted: () => boolean): Promise<void> {
    try {
      this.#mayGrow?.();
      const file = await this.#files.prepare(number, wanted);
      if (wanted()) this.#file = file;
      else file?.close();
    } catch (error) {
      this.#againAt = performance.now() + RETRY_MS;
      const path = this.#files.path(number);
      this.#log.warn({ path, err: errorMessage(error), diskFull: isDiskFull(error) }, 'cannot prepare the next WAL segment');
    }
  }

  /** The segment, from now on the caller's: the prepared file, or a new one. */
  take(number: number): SegmentFile {
    const next = this.#file;
    this.#file = undefined;
    if (next !== undefined && next.header.segment === number) return next;
    next?.close();
    this.#mayGrow?.();
    return this.#files.create(number);
  }

  /** Removes its file. */
  drop(): void {
    if (this.#file === undefined) return;
    this.#file.close();
    removeIfThere(this.#file.path);
    this.#file = undefined;
  }

  close(): void {
    this.#file?.close();
    this.#file = undefined;
  }
}
