/** What can be wrong with a record or a page: one to five changes of a real one. Most keep the record's structure, so that they get past the
 *  decoder and deep into redo; the values are those that pass one check and fail the next.
 *  Invariant: samples are never changed; every change works on a copy. */
import { BLCKSZ } from '@lakebase/ids';
import type { Random } from './random.ts';
import { encodeSample, type Sample, type SampleBlock, zeroPage } from './sample.ts';

export interface Mutant {
  /** The pages are ones that Postgres wrote; a page made from them must be whole. */
  readonly realPages: boolean;
  readonly sample: Sample;
  readonly bytes: Buffer;
}

const SMALL = [
  0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 23, 24, 32, 40, 64, 100, 127, 128, 226, 255, 256, 291, 292, 407, 408, 409, 512, 816, 1000,
];
const WIDE_16 = [
  1358, 1360, 2047, 2048, 4095, 4096, 8160, 8176, 8184, 8191, 8192, 8193, 0x3fff, 0x7fff, 0x8000, 0x8001, 0xfffc, 0xfffd, 0xfffe, 0xffff,
];
const WIDE_32 = [0x7fff, 0x8000, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ff00, 0xffff_fffe, 0xffff_ffff];

const value16 = (r: Random): number => (r.oneIn(2) ? r.pick(SMALL) : r.oneIn(2) ? r.pick(WIDE_16) : r.below(0x1_0000));
const value32 = (r: Random): number => (r.oneIn(2) ? r.pick(SMALL) : r.oneIn(2) ? r.pick(WIDE_32) : r.next32());

/** Changes one to four bytes of a copy. The front of a buffer, where counts and offsets are, is likelier than the rest. */
function poke(bytes: Buffer, r: Random): Buffer {
  const out = Buffer.from(bytes);
  if (out.length === 0) return out;
  const at = r.oneIn(2) ? r.below(Math.min(out.length, 24)) : r.below(out.length);
  switch (r.below(6)) {
    case 0:
      out[at] = r.next32();
      break;
    case 1:
      out[at] = (out[at] as number) ^ (1 << r.below(8));
      break;
    case 2: // a value near the one that is there
      out[at] = (out[at] as number) + (r.oneIn(2) ? 1 : 255);
      break;
    case 3:
    case 4: {
      const even = at & ~1;
      if (even + 2 <= out.length) out.writeUInt16LE(value16(r), even);
      break;
    }
    default: {
      const even = at & ~1;
      if (even + 4 <= out.length) out.writeUInt32LE(value32(r), even);
    }
  }
  return out;
}

/** Changes the length or the order of what is there. */
function reshape(bytes: Buffer, other: Buffer, r: Random): Buffer {
  const cut = r.below(bytes.length + 1);
  switch (r.below(6)) {
    case 0:
      return Buffer.from(bytes.subarray(0, cut));
    case 1:
      return Buffer.from(bytes.subarray(cut));
    case 2: // a part twice
      return Buffer.concat([bytes.subarray(0, cut), bytes.subarray(r.below(cut + 1))]);
    case 3:
      return Buffer.concat([bytes.subarray(0, cut), other.subarray(r.below(other.length + 1))]);
    case 4: {
      const grown = Buffer.alloc(bytes.length + r.pick(SMALL));
      bytes.copy(grown);
      return grown;
    }
    default:
      return Buffer.from(other);
  }
}

function mutateBlock(sample: Sample, r: Random, peer: Sample): void {
  if (sample.blocks.length === 0) return;
  const i = r.below(sample.blocks.length);
  const block: SampleBlock = { ...(sample.blocks[i] as SampleBlock) };
  sample.blocks[i] = block;
  const otherData = peer.blocks.length === 0 ? peer.main : (r.pick(peer.blocks) as SampleBlock).data;
  switch (r.below(16)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
    case 5:
      block.data = poke(block.data, r);
      break;
    case 6:
    case 7:
      block.data = reshape(block.data, otherData, r).subarray(0, 0xffff);
      break;
    case 8:
      block.data = Buffer.alloc(0);
      break;
    case 9:
      block.flags ^= r.pick([0x40, 0x01, 0x02, 0x03]); // will-init, another fork
      break;
    case 10:
      sample.blocks = sample.blocks.filter((_b, k) => k !== i);
      break;
    case 11: // as another id, behind the others
      block.id = Math.min(32, (sample.blocks.at(-1) as SampleBlock).id + r.below(4));
      sample.pages[block.id] ??= sample.pages[(sample.blocks[i] as SampleBlock).id];
      break;
    case 12:
      block.block = value32(r);
      break;
    case 13:
      block.rel = value32(r);
      break;
    case 14:
      if (block.image !== undefined) block.image = r.oneIn(2) ? poke(block.image, r) : reshape(block.image, otherData, r).subarray(0, 8192);
      break;
    default:
      if (block.image === undefined) return;
      if (r.oneIn(2)) block.bimgInfo = r.below(32);
      else block[r.pick(['holeOffset', 'holeLength'] as const)] = value16(r);
  }
}

/** The page header, line pointers, special space, or anything. */
function pokePage(before: Buffer, r: Random): Buffer {
  const page = Buffer.from(before);
  const u16 = (at: number, value: number): void => {
    if (at >= 0 && at + 2 <= BLCKSZ) page.writeUInt16LE(value, at);
  };
  switch (r.below(8)) {
    case 0:
      u16(r.pick([10, 12, 14, 16, 18]), value16(r));
      break;
    case 1:
    case 2: // a line pointer
      page.writeUInt32LE(
        r.oneIn(2) ? r.next32() : (r.below(8192) | (r.below(4) << 15) | (r.below(4096) << 17)) >>> 0,
        24 + 4 * r.below(40),
      );
      break;
    case 3:
      u16((page.readUInt16LE(16) & 0x1fff) + 2 * r.below(10), value16(r));
      break;
    case 4:
      page[r.below(BLCKSZ)] = r.next32();
      break;
    case 5: // the front of a tuple
      u16((page.readUInt32LE(24 + 4 * r.below(8)) & 0x7fff) + 2 * r.below(14), value16(r));
      break;
    case 6: {
      const from = r.below(BLCKSZ);
      page.fill(r.oneIn(2) ? 0 : r.next32() & 0xff, from, from + r.below(BLCKSZ - from));
      break;
    }
    default:
      return r.oneIn(2) ? zeroPage() : page.fill(0xff);
  }
  return page;
}

/** True when a page is no longer one that Postgres wrote. */
function mutatePage(sample: Sample, r: Random, peer: Sample): boolean {
  const ids = Object.keys(sample.pages).map(Number);
  if (ids.length === 0) return false;
  const id = r.pick(ids);
  const mine = sample.pages[id];
  const theirs = peer.pages.find((page) => page !== undefined);
  if (mine === undefined) return false;
  const swap = theirs !== undefined && r.oneIn(4);
  sample.pages[id] = swap ? theirs : pokePage(mine, r);
  return !swap;
}

/** `peers`: samples of the same module. */
export function mutate(original: Sample, peers: readonly Sample[], r: Random): Mutant {
  const sample: Sample = { ...original, blocks: [...original.blocks], pages: [...original.pages] };
  let realPages = true;
  for (let changes = 1 + r.below(r.oneIn(4) ? 5 : 2); changes > 0; changes--) {
    const peer = r.pick(peers);
    const what = r.below(20);
    if (what < 8) sample.main = poke(sample.main, r);
    else if (what < 9) sample.main = reshape(sample.main, peer.main, r);
    else if (what < 14) mutateBlock(sample, r, peer);
    else if (what < 16) {
      if (mutatePage(sample, r, peer)) realPages = false;
    } else if (what < 17) sample.info = r.oneIn(2) ? peer.info : (r.below(16) << 4) | (sample.info & 0x0f);
    else if (what < 18) sample.main = peer.main;
    else if (what < 19) sample.xid = value32(r);
    else if (what < 20) sample.endLsn = r.oneIn(8) ? peer.endLsn : sample.endLsn;
  }
  let bytes = encodeSample(sample);
  // Seldom the headers themselves: the decoder refuses most of that.
  if (r.oneIn(12) && bytes.length > 24) {
    const at = 24 + r.below(Math.min(bytes.length - 24, 60));
    bytes[at] = r.oneIn(2) ? r.next32() : r.pick(SMALL);
    if (r.oneIn(3)) bytes = Buffer.from(bytes.subarray(0, 24 + r.below(bytes.length - 24)));
  }
  bytes.writeUInt32LE(bytes.length, 0);
  return { sample, bytes, realPages };
}
