/** Changes to the segments of a posting tree leaf (ginRedoRecompress), logged by insertion and by VACUUM alike.
 *  Invariants: (1) old segments are read from a copy, so writing can never overtake reading; (2) nothing is written past the page's data
 *  area; (3) what lies behind the new end stays as it is, as in Postgres, which shortens pages in place. */
import { BLCKSZ } from '@lakebase/ids';
import { type DecodedRecord, pdLower, setPdLower, scratchBuffer } from '@lakebase/pg-format';
import { corrupt, unsupported } from '../record-error.ts';
import * as c from './codes.ts';
import { decodeSegment, encodeSegment, mergeItems, readItem, segmentSize } from './posting-list.ts';

/** The old segments, and a segment being made; redo is synchronous, one of each is enough. */
const old = scratchBuffer(BLCKSZ);
const made = scratchBuffer(BLCKSZ);

/** `start` and `end` bound ginxlogRecompressDataLeaf and its actions in the record. */
export function recompress(page: Buffer, record: DecodedRecord, start: number, end: number): void {
  const flags = page.readUInt16LE(c.OPAQUE_FLAGS);
  if ((flags & c.GIN_COMPRESSED) === 0) throw unsupported(record, 'a GIN posting tree from before Postgres 9.4; REINDEX it');
  if ((flags & (c.GIN_DATA | c.GIN_LEAF)) !== (c.GIN_DATA | c.GIN_LEAF)) throw corrupt(record, 'the page is no posting tree leaf');
  const oldEnd = pdLower(page);
  if (oldEnd < c.DATA_START) throw corrupt(record, `the page's data ends at ${oldEnd}`);
  page.copy(old, c.DATA_START, c.DATA_START, oldEnd);
  const { buf } = record;
  let read = c.DATA_START;
  let write = c.DATA_START;
  const put = (from: Buffer, at: number, size: number): void => {
    if (write + size > c.DATA_END) throw corrupt(record, 'segments do not fit the page');
    from.copy(page, write, at, at + size);
    write += size;
  };
  /** A mangled list must not be read past its part of the record. */
  const need = (bytes: number): void => {
    if (end - at < bytes) throw corrupt(record, 'an action is cut');
  };
  let at = start;
  need(2);
  const actions = buf.readUInt16LE(at);
  at += 2;
  let segment = 0;
  for (let i = 0; i < actions; i++) {
    need(2);
    const target = buf[at] as number;
    const action = buf[at + 1] as number;
    at += 2;
    if (target < segment) throw corrupt(record, `action on segment ${target} after ${segment}`);
    for (; segment < target; segment++) {
      const size = segmentSize(old, read, oldEnd);
      put(old, read, size);
      read += size;
    }
    switch (action) {
      case c.GIN_SEGMENT_DELETE:
        read += segmentSize(old, read, oldEnd);
        segment++;
        break;
      case c.GIN_SEGMENT_INSERT:
      case c.GIN_SEGMENT_REPLACE: {
        const size = segmentSize(buf, at, end);
        put(buf, at, size);
        at += size;
        if (action === c.GIN_SEGMENT_INSERT) break;
        read += segmentSize(old, read, oldEnd);
        segment++;
        break;
      }
      case c.GIN_SEGMENT_ADDITEMS: {
        need(2);
        const count = buf.readUInt16LE(at);
        at += 2;
        need(count * 6);
        const items: number[] = [];
        for (let k = 0; k < count; k++, at += 6) items.push(readItem(buf, at));
        const size = segmentSize(old, read, oldEnd);
        put(made, 0, encodeSegment(mergeItems(items, decodeSegment(old, read)), made));
        read += size;
        segment++;
        break;
      }
      default:
        throw corrupt(record, `no segment action ${action}`);
    }
  }
  put(old, read, oldEnd - read);
  setPdLower(page, write);
}
