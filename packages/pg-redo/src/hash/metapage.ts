/** The metapage of a hash index and the changes records make to it (hashpage.c, hashutil.c).
 *  Invariant: indexes into hashm_spares and hashm_mapp are checked, whether they come from the record or from the page. */
import { type DecodedBlock, type DecodedRecord, setPdLower } from '@lakebase/pg-format';
import { blockData, blockNumber, hasBlock, INVALID_BLOCK } from '../index-page.ts';
import { corrupt, mainData } from '../record-error.ts';
import * as c from './codes.ts';
import { initHashPage } from './page.ts';

/** Splitpoint groups from this one on are allocated in four phases. */
const ONE_PHASE_GROUPS = 10;

/** pg_ceil_log2_32. */
const ceilLog2 = (n: number): number => (n <= 1 ? 0 : 32 - Math.clz32(n - 1));

/** _hash_spareindex: the splitpoint phase that `buckets` buckets reach into. */
export function spareIndex(buckets: number): number {
  const group = ceilLog2(buckets);
  if (group < ONE_PHASE_GROUPS) return group;
  return ONE_PHASE_GROUPS + ((group - ONE_PHASE_GROUPS) << 2) + (((buckets - 1) >>> (group - 3)) & 3);
}

/** _hash_get_totalbuckets: buckets there are once splitpoint phase `phase` is allocated. */
export function totalBuckets(phase: number): number {
  if (phase < ONE_PHASE_GROUPS) return 2 ** phase;
  const group = ONE_PHASE_GROUPS + ((phase - ONE_PHASE_GROUPS) >> 2);
  const before = 2 ** (group - 1);
  return before + (before / 4) * (((phase - ONE_PHASE_GROUPS) & 3) + 1);
}

/** _hash_init_metabuffer. */
export function initMetapage(page: Buffer, record: DecodedRecord): void {
  const main = mainData(record, 14);
  const { buf } = record;
  const ffactor = buf.readUInt16LE(main + 12);
  const wanted = buf.readDoubleLE(main) / ffactor;
  if (Number.isNaN(wanted)) throw corrupt(record, 'a fill factor or number of tuples that is none');
  const buckets = wanted <= 2 ? 2 : wanted >= 0x4000_0000 ? 0x4000_0000 : totalBuckets(spareIndex(Math.floor(wanted)));
  const spare = spareIndex(buckets);
  initHashPage(page, { prev: INVALID_BLOCK, bucket: c.INVALID_BUCKET, flags: c.LH_META_PAGE });
  page.writeUInt32LE(c.HASH_MAGIC, c.META_MAGIC);
  page.writeUInt32LE(c.HASH_VERSION, c.META_VERSION);
  page.writeUInt16LE(ffactor, c.META_FFACTOR);
  page.writeUInt16LE(c.CONTENT_BYTES, c.META_BSIZE);
  // The largest power of two that fits, in bytes and as log2 of bits.
  page.writeUInt16LE(4096, c.META_BMSIZE);
  page.writeUInt16LE(15, c.META_BMSHIFT);
  page.writeUInt32LE(buf.readUInt32LE(main + 8), c.META_PROCID);
  page.writeUInt32LE(buckets - 1, c.META_MAXBUCKET);
  const highmask = 2 ** ceilLog2(buckets + 1) - 1;
  page.writeUInt32LE(highmask, c.META_HIGHMASK);
  page.writeUInt32LE(highmask >>> 1, c.META_LOWMASK);
  page.writeUInt32LE(1, c.META_SPARES + spare * 4);
  page.writeUInt32LE(spare, c.META_OVFLPOINT);
  setPdLower(page, c.META_END);
}

/** Enters a new bitmap page at block `block`. */
export function addBitmap(page: Buffer, record: DecodedRecord, block: number): void {
  const maps = page.readUInt32LE(c.META_NMAPS);
  if (maps >= c.MAX_BITMAPS) throw corrupt(record, `the index has ${maps} bitmap pages already`);
  page.writeUInt32LE(block, c.META_MAPP + maps * 4);
  page.writeUInt32LE(maps + 1, c.META_NMAPS);
}

export const addTupleCount = (page: Buffer, delta: number): void =>
  void page.writeDoubleLE(page.readDoubleLE(c.META_NTUPLES) + delta, c.META_NTUPLES);

function spareAt(record: DecodedRecord, splitpoint: number): number {
  if (splitpoint >= c.SPARES) throw corrupt(record, `no splitpoint ${splitpoint}`);
  return c.META_SPARES + splitpoint * 4;
}

export function setFirstFree(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  page.writeUInt32LE(record.buf.readUInt32LE(blockData(record, block, 4)), c.META_FIRSTFREE);
}

/** The metapage's part of ADD_OVFL_PAGE: a page that no bitmap had is a new spare one, and so is a bitmap page made for it. */
export function addOverflowPage(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  const main = mainData(record, 3);
  setFirstFree(page, record, block);
  if (record.buf[main + 2] !== 0) return;
  const at = spareAt(record, page.readUInt32LE(c.META_OVFLPOINT));
  const isNewBitmap = hasBlock(record, 3);
  page.writeUInt32LE((page.readUInt32LE(at) + (isNewBitmap ? 2 : 1)) >>> 0, at);
  if (isNewBitmap) addBitmap(page, record, blockNumber(record, 3));
}

/** The metapage's part of SPLIT_ALLOCATE_PAGE. */
export function allocateBucket(page: Buffer, record: DecodedRecord, block: DecodedBlock): void {
  const main = mainData(record, 9);
  const { buf } = record;
  const flags = buf[main + 8] as number;
  const masks = (flags & c.XLH_SPLIT_META_UPDATE_MASKS) !== 0;
  const splitpoint = (flags & c.XLH_SPLIT_META_UPDATE_SPLITPOINT) !== 0;
  let at = blockData(record, block, (masks ? 8 : 0) + (splitpoint ? 8 : 0));
  page.writeUInt32LE(buf.readUInt32LE(main), c.META_MAXBUCKET);
  if (masks) {
    page.writeUInt32LE(buf.readUInt32LE(at), c.META_LOWMASK);
    page.writeUInt32LE(buf.readUInt32LE(at + 4), c.META_HIGHMASK);
    at += 8;
  }
  if (splitpoint) {
    const point = buf.readUInt32LE(at);
    page.writeUInt32LE(buf.readUInt32LE(at + 4), spareAt(record, point));
    page.writeUInt32LE(point, c.META_OVFLPOINT);
  }
}
