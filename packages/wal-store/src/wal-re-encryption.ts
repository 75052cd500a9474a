/** WAL segments written anew under fresh data keys, in their places, while WAL goes on.
 *  Invariants: a file takes another's place only when it holds the same WAL; what changed the segment meanwhile wins and the copy is thrown away. */
import { setImmediate as turn } from 'node:timers/promises';
import { LakebaseError } from '@lakebase/base';
import { type Lsn, WAL_SEGMENT_BYTES, lsn } from '@lakebase/ids';
import type { LogParts } from './log-recovery.ts';
import type { RecordBoundary } from './record-boundary.ts';
import { removeIfThere } from './segment-dir.ts';
import { SegmentCopy } from './segment-re-encryption.ts';

/** Turns waited for one without unsynced WAL. */
const REST_TRIES = 1_000;

export interface WalReEncryptionOptions extends LogParts {
  /** Where the timeline began. */
  readonly begin: RecordBoundary;
  readonly read: (from: Lsn, max: number) => Buffer;
  readonly isClosed: () => boolean;
  /** Throws when nothing may be written. */
  readonly checkUsable: () => void;
}

export class WalReEncryption {
  readonly #files: LogParts['files'];
  readonly #complete: LogParts['complete'];
  readonly #end: LogParts['end'];
  readonly #begin: RecordBoundary;
  readonly #read: (from: Lsn, max: number) => Buffer;
  readonly #isClosed: () => boolean;
  readonly #checkUsable: () => void;
  /** The copy under way, or the last. Never rejects. */
  settled: Promise<void> | undefined;

  constructor(options: WalReEncryptionOptions) {
    this.#files = options.files;
    this.#complete = options.complete;
    this.#end = options.end;
    this.#begin = options.begin;
    this.#read = options.read;
    this.#isClosed = options.isClosed;
    this.#checkUsable = options.checkUsable;
  }

  /** Writes the WAL of a segment anew under a fresh data key, in its place. Resolves with the bytes written; 0: it is not there, or was changed
   *  meanwhile. UNAVAILABLE when what is being written does not come to rest; try again. */
  async run(number: number): Promise<number> {
    const end = this.#end;
    this.#checkUsable();
    await end.next.settled;
    if (number === end.next.number) end.next.drop();
    if (number < this.#complete.first || number > this.#end.segment || this.#complete.holes.has(number)) return 0;
    const path = `${this.#files.path(number)}.anew.tmp`;
    const complete = number < this.#end.segment;
    if (!complete && !end.begun) throw new LakebaseError('UNAVAILABLE', `${this.#end.current.path} is only just begun`);
    const boundary = complete ? this.#complete.boundaryAt(number, this.#begin) : this.#end.current.context();
    const copy = new SegmentCopy(this.#files.create(number, path), boundary, this.#read);
    const copying = complete ? this.#copyComplete(copy, number, path) : this.#copyCurrent(copy, number, path);
    this.settled = copying.then(() => {}).catch(() => {});
    return copying.finally(() => {
      if (copy.file !== this.#end.current) copy.file.close();
      removeIfThere(path);
    });
  }

  async #copyComplete(copy: SegmentCopy, number: number, path: string): Promise<number> {
    const adopted = this.#end.adoptions;
    const changed = (): boolean =>
      this.#isClosed() || adopted !== this.#end.adoptions || number < this.#complete.first || this.#complete.holes.has(number);
    await copy.pieces(lsn((number + 1) * WAL_SEGMENT_BYTES), changed);
    if (changed()) return 0;
    const behind = number + 1 === this.#end.segment ? this.#end.current : this.#files.open(number + 1);
    try {
      copy.checkFits(behind.context());
    } finally {
      if (behind !== this.#end.current) behind.close();
    }
    copy.file.shrink();
    this.#complete.forget(number);
    this.#files.rename(path, number);
    return copy.file.offset;
  }

  /** Most of it while WAL goes on, the rest in one turn; then WAL goes on in the new file. */
  async #copyCurrent(copy: SegmentCopy, number: number, path: string): Promise<number> {
    const adopted = this.#end.adoptions;
    const changed = (): boolean => this.#isClosed() || adopted !== this.#end.adoptions || number !== this.#end.segment;
    await copy.pieces(this.#end.flushLsn, changed);
    for (let tries = 0; !changed() && !this.#end.atRest; tries++) {
      if (tries === REST_TRIES) throw new LakebaseError('UNAVAILABLE', `${this.#end.current.path} is being written without a pause`);
      await turn();
    }
    if (changed()) throw new LakebaseError('UNAVAILABLE', `${path}: the segment was finished or cut meanwhile`);
    this.#checkUsable();
    copy.rest(this.#end.flushLsn);
    this.#end.continueIn(copy.file, path);
    return copy.file.offset;
  }
}
