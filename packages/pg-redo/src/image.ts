/** Full-page images: RestoreBlockImage (xlogreader.c) with the three compression methods.
 *  Invariant: the page is written only once the whole image was decompressed to exactly the length its header announces. */
import { zstdDecompressSync } from 'node:zlib';
import { BLCKSZ } from '@lakebase/ids';
import {
  BKPIMAGE_COMPRESS_LZ4,
  BKPIMAGE_COMPRESS_PGLZ,
  BKPIMAGE_COMPRESSED,
  type DecodedBlock,
  type DecodedRecord,
  scratchBuffer,
} from '@lakebase/pg-format';
import { lz4DecompressBlock } from './lz4.ts';
import { pglzDecompress } from './pglz.ts';
import { corrupt } from './record-error.ts';

const scratch = scratchBuffer(BLCKSZ);

/** The image of block `blockId`, whether it is to be applied or only to be compared with; pd_lsn stays as in the image. */
export function restoreBlockImage(record: DecodedRecord, blockId: number, page: Buffer): void {
  const block = record.blocks[blockId];
  if (blockId > record.maxBlockId || block === undefined || !block.inUse || !block.hasImage)
    throw corrupt(record, `has no page image of block ${blockId}`);
  restoreImage(page, record, block);
}

/** Writes the image of block `blockId` into `page`; pd_lsn is left to the caller. */
export function restoreImage(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  const { buf } = record;
  const { imageOffset, imageLength, holeOffset, holeLength } = block;
  const length = BLCKSZ - holeLength;
  let source = buf;
  let from = imageOffset;
  if ((block.bimgInfo & BKPIMAGE_COMPRESSED) !== 0) {
    decompress(record, block, length);
    source = scratch;
    from = 0;
  } else if (imageLength !== length) throw corrupt(record, `page image of ${imageLength} bytes, ${length} are needed`);
  source.copy(page, 0, from, from + (holeLength === 0 ? BLCKSZ : holeOffset));
  if (holeLength > 0) {
    page.fill(0, holeOffset, holeOffset + holeLength);
    source.copy(page, holeOffset + holeLength, from + holeOffset, from + length);
  }
}

function decompress(record: DecodedRecord, block: DecodedBlock, length: number): void {
  const from = block.imageOffset;
  const to = from + block.imageLength;
  const { buf } = record;
  if ((block.bimgInfo & BKPIMAGE_COMPRESS_PGLZ) !== 0) {
    if (!pglzDecompress(buf, from, to, scratch, length)) throw corrupt(record, 'page image is not valid pglz');
  } else if ((block.bimgInfo & BKPIMAGE_COMPRESS_LZ4) !== 0) {
    if (!lz4DecompressBlock(buf, from, to, scratch, length)) throw corrupt(record, 'page image is not valid LZ4');
  } else {
    let plain: Buffer;
    try {
      plain = zstdDecompressSync(buf.subarray(from, to), { maxOutputLength: BLCKSZ });
    } catch (error) {
      throw corrupt(record, 'page image is not valid zstd', error);
    }
    if (plain.length !== length) throw corrupt(record, `page image of ${plain.length} bytes, ${length} are needed`);
    plain.copy(scratch);
  }
}
