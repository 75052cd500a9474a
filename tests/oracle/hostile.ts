/** Real records made hostile: bytes of the record and of its page are changed at random, redo may then only give some page or a typed error.
 *  The first few blocks of every record type are treated so, which starts from records that get far into redo, unlike invented ones.
 *  Invariant: deterministic; the same WAL gives the same mutations. */
import { isCode } from '@lakebase/base';
import { BLCKSZ } from '@lakebase/ids';
import { type DecodedRecord, decodeRecord, newDecodedRecord, RECORD_HEADER_BYTES } from '@lakebase/pg-format';
import { redo } from '@lakebase/pg-redo';
import { recordTypeName } from './record-types.ts';

const BLOCKS_PER_TYPE = 12;
const MUTATIONS_PER_BLOCK = 60;
const GUARD = 0x5a;
/** Values that are likelier than others to pass one check and fail the next. */
const VALUES = [0, 1, 2, 3, 7, 8, 0x10, 0x20, 0x7f, 0x80, 0xfe, 0xff];

export class HostileRecords {
  /** What redo did that it must not do. */
  readonly failures: string[] = [];
  attempts = 0;
  /** Mutations that redo refused; the others gave a page. */
  refused = 0;
  readonly #done = new Map<string, number>();
  readonly #out = newDecodedRecord();
  readonly #memory = Buffer.alloc(3 * BLCKSZ, GUARD);
  readonly #guard = Buffer.alloc(BLCKSZ, GUARD);
  #random = 1;

  /** `page` is the block as it is before the record; it is left alone. */
  attack(record: DecodedRecord, blockId: number, page: Buffer, major: number): void {
    const name = recordTypeName(record.rmid, record.info, major);
    const kind = `${name} block ${blockId}`;
    const done = this.#done.get(kind) ?? 0;
    if (done >= BLOCKS_PER_TYPE) return;
    this.#done.set(kind, done + 1);
    for (let i = 0; i < MUTATIONS_PER_BLOCK; i++) this.#attempt(record, blockId, page, major, kind);
  }

  #next(below: number): number {
    this.#random = (Math.imul(this.#random, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((this.#random / 0x1_0000_0000) * below);
  }

  #mutate(bytes: Buffer, from: number, to: number): void {
    if (to <= from) return;
    const at = from + this.#next(to - from);
    bytes[at] = this.#next(2) === 0 ? (VALUES[this.#next(VALUES.length)] as number) : this.#next(256);
  }

  #attempt(record: DecodedRecord, blockId: number, page: Buffer, major: number, kind: string): void {
    const target = this.#memory.subarray(BLCKSZ, 2 * BLCKSZ);
    page.copy(target);
    const bytes = Buffer.from(record.buf.subarray(record.offset, record.offset + record.length));
    // Mostly the fixed part of main and block data; images and record headers have tests of their own.
    const block = record.blocks[blockId] as DecodedRecord['blocks'][number];
    const main = record.mainOffset - record.offset;
    const data = block.dataOffset - record.offset;
    const where = this.#next(8);
    if (where < 3) this.#mutate(bytes, main, main + Math.min(record.mainLength, 40));
    else if (where < 5) this.#mutate(bytes, data, data + Math.min(block.dataLength, 40));
    else if (where < 6) this.#mutate(bytes, RECORD_HEADER_BYTES, bytes.length);
    else if (where < 7) this.#mutate(target, 8, 8 + 80);
    else this.#mutate(target, BLCKSZ - 400, BLCKSZ);
    if (this.#next(3) === 0) this.#mutate(bytes, main, main + record.mainLength);
    this.attempts++;
    try {
      redo(target, decodeRecord(bytes, 0, bytes.length, record.lsn, record.endLsn, this.#out), blockId, major);
    } catch (error) {
      this.refused++;
      if (!isCode(error, 'CORRUPT') && !isCode(error, 'UNSUPPORTED'))
        this.#fail(`${kind}: ${error instanceof Error ? error.stack : String(error)}`);
    }
    if (!this.#memory.subarray(0, BLCKSZ).equals(this.#guard) || !this.#memory.subarray(2 * BLCKSZ).equals(this.#guard)) {
      this.#fail(`${kind}: bytes outside the page changed`);
      this.#memory.fill(GUARD);
    }
  }

  #fail(what: string): void {
    if (this.failures.length < 20) this.failures.push(what);
  }
}
