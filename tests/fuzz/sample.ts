/** A real WAL record taken apart, with its pages as they were before it, and the way back to bytes.
 *  Invariant: `encodeSample` of an unchanged sample decodes to the record it was taken from. */
import { BLCKSZ, type Lsn } from '@lakebase/ids';
import {
  BKPBLOCK_HAS_DATA,
  BKPBLOCK_HAS_IMAGE,
  BKPBLOCK_SAME_REL,
  BKPIMAGE_COMPRESSED,
  BKPIMAGE_HAS_HOLE,
  type DecodedBlock,
  type DecodedRecord,
  RECORD_HEADER_BYTES,
} from '@lakebase/pg-format';

export interface SampleBlock {
  id: number;
  /** fork_flags; the bits that follow from the other fields are set when encoding. */
  flags: number;
  spc: number;
  db: number;
  rel: number;
  block: number;
  data: Buffer;
  image: Buffer | undefined;
  holeOffset: number;
  holeLength: number;
  bimgInfo: number;
}

export interface Sample {
  /** As recordTypeName gives it. */
  type: string;
  rmid: number;
  info: number;
  xid: number;
  originId: number;
  lsn: Lsn;
  endLsn: Lsn;
  main: Buffer;
  blocks: SampleBlock[];
  /** By block id: the page before the record, absent when the record makes it. */
  pages: (Buffer | undefined)[];
}

export function takeApart(record: DecodedRecord, type: string, page: (block: DecodedBlock) => Buffer | undefined): Sample {
  const { buf } = record;
  const bytes = (at: number, length: number): Buffer => Buffer.from(buf.subarray(at, at + length));
  const sample: Sample = {
    type,
    rmid: record.rmid,
    info: record.info,
    xid: record.xid,
    originId: record.originId,
    lsn: record.lsn,
    endLsn: record.endLsn,
    main: bytes(record.mainOffset, record.mainLength),
    blocks: [],
    pages: [],
  };
  for (let id = 0; id <= record.maxBlockId; id++) {
    const block = record.blocks[id] as DecodedBlock;
    if (!block.inUse) continue;
    sample.blocks.push({
      id,
      flags: block.flags & ~(BKPBLOCK_SAME_REL | BKPBLOCK_HAS_DATA | BKPBLOCK_HAS_IMAGE),
      spc: block.spc,
      db: block.db,
      rel: block.rel,
      block: block.block,
      data: bytes(block.dataOffset, block.dataLength),
      image: block.hasImage ? bytes(block.imageOffset, block.imageLength) : undefined,
      holeOffset: block.holeOffset,
      holeLength: block.holeLength,
      bimgInfo: block.bimgInfo,
    });
    const before = page(block);
    if (before !== undefined) sample.pages[id] = Buffer.from(before);
  }
  return sample;
}

/** The record's bytes; its checksum stays zero, as decoding and redo do not look at it: WAL readers have done so. */
export function encodeSample(sample: Sample): Buffer {
  let payload = sample.main.length;
  for (const block of sample.blocks) payload += block.data.length + (block.image?.length ?? 0);
  const out = Buffer.allocUnsafe(RECORD_HEADER_BYTES + sample.blocks.length * 27 + 3 + 5 + payload);
  out.fill(0, 0, RECORD_HEADER_BYTES);
  let at = RECORD_HEADER_BYTES;
  for (const block of sample.blocks) {
    out[at] = block.id;
    out[at + 1] =
      (block.flags & 0x4f) | (block.data.length > 0 ? BKPBLOCK_HAS_DATA : 0) | (block.image === undefined ? 0 : BKPBLOCK_HAS_IMAGE);
    out.writeUInt16LE(block.data.length & 0xffff, at + 2);
    at += 4;
    if (block.image !== undefined) {
      out.writeUInt16LE(block.image.length & 0xffff, at);
      out.writeUInt16LE(block.holeOffset & 0xffff, at + 2);
      out[at + 4] = block.bimgInfo;
      at += 5;
      if ((block.bimgInfo & BKPIMAGE_COMPRESSED) !== 0 && (block.bimgInfo & BKPIMAGE_HAS_HOLE) !== 0) {
        out.writeUInt16LE(block.holeLength & 0xffff, at);
        at += 2;
      }
    }
    out.writeUInt32LE(block.spc, at);
    out.writeUInt32LE(block.db, at + 4);
    out.writeUInt32LE(block.rel, at + 8);
    out.writeUInt32LE(block.block, at + 12);
    at += 16;
  }
  if (sample.originId !== 0) {
    out[at] = 253;
    out.writeUInt16LE(sample.originId, at + 1);
    at += 3;
  }
  if (sample.main.length > 255) {
    out[at] = 254;
    out.writeUInt32LE(sample.main.length, at + 1);
    at += 5;
  } else if (sample.main.length > 0) {
    out[at] = 255;
    out[at + 1] = sample.main.length;
    at += 2;
  }
  for (const block of sample.blocks) {
    if (block.image !== undefined) at += block.image.copy(out, at);
    at += block.data.copy(out, at);
  }
  at += sample.main.copy(out, at);
  out.writeUInt32LE(at, 0);
  out.writeUInt32LE(sample.xid, 4);
  out[16] = sample.info;
  out[17] = sample.rmid;
  return out.subarray(0, at);
}

/** A page for a block the sample has none for. */
export const zeroPage = (): Buffer => Buffer.alloc(BLCKSZ);
