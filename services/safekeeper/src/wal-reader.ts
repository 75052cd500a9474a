/** WAL for one reader of committed WAL: from this member while it holds it, from the object store before that. One per stream.
 *  Invariant: nothing beyond the commit LSN (objects hold committed WAL only). Memory: that of one WAL object's read-ahead. */
import type { Lsn } from '@lakebase/ids';
import type { WalArchiveReader } from '@lakebase/wal-store';
import type { WalTimeline } from './wal-timeline.ts';

export class WalReader {
  readonly #timeline: WalTimeline;
  #archive: WalArchiveReader | undefined;

  constructor(timeline: WalTimeline) {
    this.#timeline = timeline;
  }

  /** First byte that can be read. */
  static firstLsn(timeline: WalTimeline): Lsn {
    return timeline.archive !== undefined && timeline.offloadedLsn >= timeline.firstLsn ? timeline.archive.firstLsn : timeline.firstLsn;
  }

  /** At most `max` bytes, none at the end. NOT_FOUND for WAL that is nowhere. */
  async read(from: Lsn, max: number): Promise<Buffer> {
    const { archive, firstLsn } = this.#timeline;
    if (from >= firstLsn || archive === undefined) {
      this.close();
      return this.#timeline.read(from, max);
    }
    this.#archive ??= archive.reader();
    const bytes = await this.#archive.read(from, max);
    // The project may have been locked meanwhile.
    this.#timeline.checkOpen();
    return bytes;
  }

  close(): void {
    this.#archive?.close();
    this.#archive = undefined;
  }
}
