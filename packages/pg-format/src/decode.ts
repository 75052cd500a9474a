/** Decoding of one contiguous record into a {@link DecodedRecord}: headers parsed and cross-checked, nothing copied.
 *  Invariants: every offset and length in the result lies inside the record; a record that breaks a rule of DecodeXLogRecord is CORRUPT. */
import { LakebaseError } from '@lakebase/base';
import { formatLsn, INVALID_LSN, type Lsn } from '@lakebase/ids';
import {
  BKPBLOCK_FORK_MASK,
  BKPBLOCK_HAS_DATA,
  BKPBLOCK_HAS_IMAGE,
  BKPBLOCK_SAME_REL,
  BKPBLOCK_WILL_INIT,
  BKPIMAGE_APPLY,
  BKPIMAGE_COMPRESSED,
  BKPIMAGE_HAS_HOLE,
  MAX_BLOCK_ID,
  MAX_BLOCK_NUMBER,
  RECORD_BYTES_MAX,
  RECORD_HEADER_BYTES,
  RM_MAX_BUILTIN_ID,
  RM_MIN_CUSTOM_ID,
  XLR_BLOCK_ID_DATA_LONG,
  XLR_BLOCK_ID_DATA_SHORT,
  XLR_BLOCK_ID_ORIGIN,
  XLR_BLOCK_ID_TOPLEVEL_XID,
} from './constants.ts';
import type { DecodedBlock, DecodedRecord } from './record.ts';
import { recordCrc } from './record-crc.ts';

const BLCKSZ = 8192;
const EMPTY = Buffer.alloc(0);

const newBlock = (): DecodedBlock => ({
  inUse: false,
  spc: 0,
  db: 0,
  rel: 0,
  fork: 0,
  block: 0,
  flags: 0,
  willInit: false,
  hasImage: false,
  applyImage: false,
  bimgInfo: 0,
  imageOffset: 0,
  imageLength: 0,
  holeOffset: 0,
  holeLength: 0,
  dataOffset: 0,
  dataLength: 0,
});

/** An empty record to decode into; reuse it. */
export const newDecodedRecord = (): DecodedRecord => ({
  lsn: INVALID_LSN,
  endLsn: INVALID_LSN,
  prev: INVALID_LSN,
  xid: 0,
  rmid: 0,
  info: 0,
  originId: 0,
  topXid: 0,
  buf: EMPTY,
  offset: 0,
  length: 0,
  mainOffset: 0,
  mainLength: 0,
  maxBlockId: -1,
  blocks: Array.from({ length: 4 }, newBlock),
});

/** A deep copy that owns its bytes, for callers that keep a record past the next one. */
export function copyRecord(record: DecodedRecord): DecodedRecord {
  const bytes = Buffer.from(record.buf.subarray(record.offset, record.offset + record.length));
  return decodeRecord(bytes, 0, bytes.length, record.lsn, record.endLsn, newDecodedRecord());
}

const u16 = (b: Uint8Array, o: number): number => (b[o] as number) | ((b[o + 1] as number) << 8);
const u32 = (b: Uint8Array, o: number): number =>
  ((b[o] as number) | ((b[o + 1] as number) << 8) | ((b[o + 2] as number) << 16) | ((b[o + 3] as number) << 24)) >>> 0;

export const corruptRecord = (lsn: number, what: string): LakebaseError =>
  new LakebaseError('CORRUPT', `WAL record at ${formatLsn(lsn as Lsn)}: ${what}`);

/** xl_tot_len of the record that starts at `offset`, within bounds. */
export function checkedRecordLength(buf: Buffer, offset: number, lsn: number): number {
  const total = u32(buf, offset);
  if (total < RECORD_HEADER_BYTES)
    throw corruptRecord(lsn, total === 0 ? 'length is zero: here the WAL ends or is not written' : `length ${total} is less than a header`);
  if (total > RECORD_BYTES_MAX) throw corruptRecord(lsn, `length ${total} is above the maximum`);
  return total;
}

/** xl_prev of the record header at `offset`. */
export function recordPrev(buf: Buffer, offset: number, lsn: number): Lsn {
  const high = u32(buf, offset + 12);
  if (high >= 0x20_0000) throw corruptRecord(lsn, 'prev-link is above 2^53');
  return (high * 0x1_0000_0000 + u32(buf, offset + 8)) as Lsn;
}

/** Start of what follows the record that starts at `lsn` and is `length` bytes long: page headers in between counted, aligned.
 *  At a page end this is the page boundary itself, as Postgres's EndRecPtr. */
export function endOfRecord(lsn: number, length: number): Lsn {
  let at = lsn;
  let left = (length + 7) & ~7;
  let room = 8192 - (at % 8192);
  while (left > room) {
    at += room;
    left -= room;
    const header = at % 16_777_216 === 0 ? 40 : 24;
    at += header;
    room = 8192 - header;
  }
  return (at + left) as Lsn;
}

/** True when xl_crc matches. */
export const recordCrcMatches = (buf: Buffer, offset: number, length: number): boolean =>
  u32(buf, offset + 20) === recordCrc(buf, offset, length);

/** Decodes the record at buf[offset, offset + length). The CRC is not checked here: WAL readers do it once on arrival
 *  ({@link recordCrcMatches}), stored records are covered by the checksum of what stores them. */
export function decodeRecord(buf: Buffer, offset: number, length: number, lsn: Lsn, endLsn: Lsn, out: DecodedRecord): DecodedRecord {
  if (offset < 0 || length < RECORD_HEADER_BYTES || offset + length > buf.length)
    throw corruptRecord(lsn, `${length} bytes at ${offset} do not lie in the buffer of ${buf.length}`);
  if (checkedRecordLength(buf, offset, lsn) !== length)
    throw corruptRecord(lsn, `length ${u32(buf, offset)} but ${length} bytes are stored`);
  const rmid = buf[offset + 17] as number;
  if (rmid > RM_MAX_BUILTIN_ID && rmid < RM_MIN_CUSTOM_ID) throw corruptRecord(lsn, `no resource manager ${rmid}`);
  out.lsn = lsn;
  out.endLsn = endLsn;
  out.prev = recordPrev(buf, offset, lsn);
  out.xid = u32(buf, offset + 4);
  out.info = buf[offset + 16] as number;
  out.rmid = rmid;
  out.originId = 0;
  out.topXid = 0;
  out.buf = buf;
  out.offset = offset;
  out.length = length;
  out.mainOffset = 0;
  out.mainLength = 0;
  out.maxBlockId = -1;

  const end = offset + length;
  let at = offset + RECORD_HEADER_BYTES;
  let payload = 0;
  let relFrom: DecodedBlock | undefined;
  while (end - at > payload) {
    const id = buf[at] as number;
    if (id <= MAX_BLOCK_ID) {
      // The smallest block reference: id, flags, data length, block number.
      if (end - at < 8) throw corruptRecord(lsn, 'block header is cut');
      if (id <= out.maxBlockId) throw corruptRecord(lsn, `block id ${id} is out of order`);
      const blocks = out.blocks;
      while (blocks.length <= id) blocks.push(newBlock());
      for (let i = out.maxBlockId + 1; i < id; i++) (blocks[i] as DecodedBlock).inUse = false;
      const block = blocks[id] as DecodedBlock;
      out.maxBlockId = id;
      const flags = buf[at + 1] as number;
      const dataLength = u16(buf, at + 2);
      at += 4;
      block.inUse = true;
      block.flags = flags;
      block.fork = flags & BKPBLOCK_FORK_MASK;
      block.willInit = (flags & BKPBLOCK_WILL_INIT) !== 0;
      block.dataLength = dataLength;
      block.hasImage = false;
      block.applyImage = false;
      block.imageLength = 0;
      if (block.fork > 3) throw corruptRecord(lsn, `block ${id}: no fork ${block.fork}`);
      if ((flags & BKPBLOCK_HAS_DATA) !== 0 ? dataLength === 0 : dataLength !== 0)
        throw corruptRecord(lsn, `block ${id}: flags and data length ${dataLength} disagree`);
      payload += dataLength;
      if ((flags & BKPBLOCK_HAS_IMAGE) !== 0) {
        at = decodeImageHeader(buf, at, end, lsn, block);
        payload += block.imageLength;
      }
      if ((flags & BKPBLOCK_SAME_REL) === 0) {
        if (end - at < 16) throw corruptRecord(lsn, 'block header is cut');
        block.spc = u32(buf, at);
        block.db = u32(buf, at + 4);
        block.rel = u32(buf, at + 8);
        at += 12;
        relFrom = block;
      } else {
        if (relFrom === undefined) throw corruptRecord(lsn, `block ${id}: same relation as none`);
        if (end - at < 4) throw corruptRecord(lsn, 'block header is cut');
        block.spc = relFrom.spc;
        block.db = relFrom.db;
        block.rel = relFrom.rel;
      }
      block.block = u32(buf, at);
      if (block.block > MAX_BLOCK_NUMBER) throw corruptRecord(lsn, `block ${id}: no block ${block.block}`);
      at += 4;
    } else if (id === XLR_BLOCK_ID_DATA_SHORT) {
      if (end - at < 2) throw corruptRecord(lsn, 'data header is cut');
      out.mainLength = buf[at + 1] as number;
      at += 2;
      payload += out.mainLength;
      break; // main data is always the last fragment
    } else if (id === XLR_BLOCK_ID_DATA_LONG) {
      if (end - at < 5) throw corruptRecord(lsn, 'data header is cut');
      out.mainLength = u32(buf, at + 1);
      at += 5;
      payload += out.mainLength;
      break;
    } else if (id === XLR_BLOCK_ID_ORIGIN) {
      if (end - at < 3) throw corruptRecord(lsn, 'origin header is cut');
      out.originId = u16(buf, at + 1);
      at += 3;
    } else if (id === XLR_BLOCK_ID_TOPLEVEL_XID) {
      if (end - at < 5) throw corruptRecord(lsn, 'top-level xid header is cut');
      out.topXid = u32(buf, at + 1);
      at += 5;
    } else throw corruptRecord(lsn, `no block id ${id}`);
  }
  if (end - at !== payload) throw corruptRecord(lsn, `headers announce ${payload} bytes of data, ${end - at} follow`);

  for (let i = 0; i <= out.maxBlockId; i++) {
    const block = out.blocks[i] as DecodedBlock;
    if (!block.inUse) continue;
    block.imageOffset = at;
    at += block.imageLength;
    block.dataOffset = at;
    at += block.dataLength;
  }
  out.mainOffset = at;
  return out;
}

/** Image header with the cross-checks of DecodeXLogRecord; the hole must also lie inside the page. */
function decodeImageHeader(buf: Buffer, start: number, end: number, lsn: number, block: DecodedBlock): number {
  let at = start;
  if (end - at < 5) throw corruptRecord(lsn, 'image header is cut');
  const length = u16(buf, at);
  const holeOffset = u16(buf, at + 2);
  const info = buf[at + 4] as number;
  at += 5;
  const compressed = (info & BKPIMAGE_COMPRESSED) !== 0;
  const hasHole = (info & BKPIMAGE_HAS_HOLE) !== 0;
  let holeLength = 0;
  if (compressed) {
    if (hasHole) {
      if (end - at < 2) throw corruptRecord(lsn, 'image header is cut');
      holeLength = u16(buf, at);
      at += 2;
    }
  } else holeLength = BLCKSZ - length;
  const bad =
    length > BLCKSZ ||
    holeOffset + holeLength > BLCKSZ ||
    (compressed && length === BLCKSZ) ||
    (hasHole ? holeOffset === 0 || holeLength <= 0 || length === BLCKSZ : holeOffset !== 0 || holeLength !== 0);
  if (bad) throw corruptRecord(lsn, `page image of ${length} bytes with hole ${holeOffset}+${holeLength}, flags ${info}, is impossible`);
  block.hasImage = true;
  block.applyImage = (info & BKPIMAGE_APPLY) !== 0;
  block.bimgInfo = info;
  block.imageLength = length;
  block.holeOffset = holeOffset;
  block.holeLength = holeLength;
  return at;
}
