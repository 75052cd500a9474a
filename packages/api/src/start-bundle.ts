/** Codec of the start bundle, suspend state and boot set (docs/formats/start-bundle.md). Pure; decoded buffers are views of the input. */
import { ByteReader, ByteWriter, DecodeError, crc32c } from '@lakebase/bytes';
import { BLCKSZ, type ForkNumber, type Lsn, type RelTag } from '@lakebase/ids';

const BUNDLE_MAGIC = 0x4c425342,
  SUSPEND_MAGIC = 0x4c425353,
  BOOT_SET_MAGIC = 0x4c424253;
export const BOOT_SET_MAX = 4_096;
const PATH_BYTES_MAX = 1_024;

export interface BundleFile {
  readonly path: string;
  readonly bytes: Buffer;
}
export interface BundleRelation {
  readonly tag: RelTag;
  readonly nblocks: number;
}
export interface BundlePage {
  readonly tag: RelTag;
  readonly block: number;
  readonly bytes: Buffer;
}
export interface StartBundle {
  readonly cleanSuspend: boolean;
  readonly systemId: bigint;
  readonly lsn: Lsn;
  readonly prevRecordLsn: Lsn;
  readonly major: number;
  /** Raw CheckPoint struct (pg_control.h), counters as of lsn. */
  readonly checkpoint: Buffer;
  readonly files: readonly BundleFile[];
  readonly relations: readonly BundleRelation[];
  readonly bootPages: readonly BundlePage[];
}
export interface SuspendState {
  readonly lsn: Lsn;
  readonly files: readonly BundleFile[];
  readonly pages: readonly BundlePage[];
}
export type BlockRef = { readonly tag: RelTag; readonly block: number };

export function encodeStartBundle(b: StartBundle): Buffer {
  // Sized once: growing by doubling would copy megabytes of pages several times.
  const filesBytes = b.files.reduce((n, f) => n + f.path.length + f.bytes.length + 16, 0);
  const w = new ByteWriter(4_096 + filesBytes + b.relations.length * 20 + b.bootPages.length * (BLCKSZ + 64))
    .u32be(BUNDLE_MAGIC)
    .u16be(1)
    .u16be(b.cleanSuspend ? 1 : 0);
  w.u32be(Number(b.systemId >> 32n))
    .u32be(Number(b.systemId & 0xffff_ffffn))
    .u64be(b.lsn)
    .u64be(b.prevRecordLsn)
    .u16be(b.major);
  w.u16be(b.checkpoint.length).bytes(b.checkpoint);
  writeFiles(w, b.files);
  w.u32be(b.relations.length);
  for (const r of b.relations) w.u32be(r.tag.spc).u32be(r.tag.db).u32be(r.tag.rel).u8(r.tag.fork).u8(0).u16be(0).u32be(r.nblocks);
  writePages(w, b.bootPages);
  return seal(w);
}

export function decodeStartBundle(bytes: Buffer): StartBundle {
  const r = open(bytes, BUNDLE_MAGIC, 'start bundle');
  const flags = r.u16be();
  const systemId = (BigInt(r.u32be()) << 32n) | BigInt(r.u32be());
  const lsn = r.lsnBe(),
    prevRecordLsn = r.lsnBe(),
    major = r.u16be();
  const checkpoint = r.bytes(r.u16be());
  const files = readFiles(r);
  const relations: BundleRelation[] = [];
  const n = count(r, 20);
  for (let i = 0; i < n; i++) {
    const spc = r.u32be(),
      db = r.u32be(),
      rel = r.u32be(),
      fork = forkOf(r);
    r.skip(3);
    relations.push({ tag: { spc, db, rel, fork }, nblocks: r.u32be() });
  }
  const bootPages = readPages(r);
  end(r);
  return { cleanSuspend: (flags & 1) !== 0, systemId, lsn, prevRecordLsn, major, checkpoint, files, relations, bootPages };
}

export function encodeSuspendState(s: SuspendState): Buffer {
  const w = new ByteWriter(65_536).u32be(SUSPEND_MAGIC).u16be(1).u16be(0).u64be(s.lsn);
  writeFiles(w, s.files);
  writePages(w, s.pages);
  return seal(w);
}

export function decodeSuspendState(bytes: Buffer): SuspendState {
  const r = open(bytes, SUSPEND_MAGIC, 'suspend state');
  r.skip(2);
  const state = { lsn: r.lsnBe(), files: readFiles(r), pages: readPages(r) };
  end(r);
  return state;
}

export function encodeBootSet(blocks: readonly BlockRef[]): Buffer {
  const w = new ByteWriter(16 + blocks.length * 20).u32be(BOOT_SET_MAGIC).u16be(1).u16be(0).u32be(blocks.length);
  for (const b of blocks) w.u32be(b.tag.spc).u32be(b.tag.db).u32be(b.tag.rel).u8(b.tag.fork).zeros(3).u32be(b.block);
  return seal(w);
}

export function decodeBootSet(bytes: Buffer): BlockRef[] {
  const r = open(bytes, BOOT_SET_MAGIC, 'boot set');
  r.skip(2);
  const n = count(r, 20);
  if (n > BOOT_SET_MAX) throw new DecodeError(`boot set of ${n} blocks`, r.offset);
  const out: BlockRef[] = [];
  for (let i = 0; i < n; i++) out.push(blockRef(r));
  end(r);
  return out;
}

function writeFiles(w: ByteWriter, files: readonly BundleFile[]): void {
  w.u32be(files.length);
  for (const f of files) w.shortString(f.path).u32be(f.bytes.length).bytes(f.bytes);
}

function readFiles(r: ByteReader): BundleFile[] {
  const n = count(r, 6);
  const files: BundleFile[] = [];
  for (let i = 0; i < n; i++) {
    const length = r.u16be();
    if (length < 1 || length > PATH_BYTES_MAX) throw new DecodeError(`path of ${length} bytes`, r.offset);
    const path = r.bytes(length).toString('utf8');
    if (path.startsWith('/') || path.split('/').some((part) => part === '' || part === '.' || part === '..'))
      throw new DecodeError('path leaves the data directory', r.offset);
    files.push({ path, bytes: r.bytes(r.u32be()) });
  }
  return files;
}

function writePages(w: ByteWriter, pages: readonly BundlePage[]): void {
  w.u32be(pages.length);
  for (const p of pages) w.u32be(p.tag.spc).u32be(p.tag.db).u32be(p.tag.rel).u8(p.tag.fork).zeros(3).u32be(p.block).bytes(p.bytes);
}

function readPages(r: ByteReader): BundlePage[] {
  const n = count(r, 20 + BLCKSZ);
  const pages: BundlePage[] = [];
  for (let i = 0; i < n; i++) pages.push({ ...blockRef(r), bytes: r.bytes(BLCKSZ) });
  return pages;
}

function blockRef(r: ByteReader): BlockRef {
  const spc = r.u32be(),
    db = r.u32be(),
    rel = r.u32be(),
    fork = forkOf(r);
  r.skip(3);
  return { tag: { spc, db, rel, fork }, block: r.u32be() };
}

function forkOf(r: ByteReader): ForkNumber {
  const fork = r.u8();
  if (fork > 3) throw new DecodeError(`fork ${fork}`, r.offset);
  return fork as ForkNumber;
}

/** A count whose items need at least `itemBytes` each: refused before anything is allocated for it. */
function count(r: ByteReader, itemBytes: number): number {
  const n = r.u32be();
  if (n * itemBytes > r.remaining) throw new DecodeError(`${n} items do not fit`, r.offset);
  return n;
}

function seal(w: ByteWriter): Buffer {
  return w.u32be(crc32c(w.view())).finish();
}

function open(bytes: Buffer, magic: number, what: string): ByteReader {
  if (bytes.length < 16 || bytes.readUInt32BE(0) !== magic) throw new DecodeError(`not a ${what}`, 0);
  const body = bytes.subarray(0, bytes.length - 4);
  if (crc32c(body) !== bytes.readUInt32BE(bytes.length - 4)) throw new DecodeError(`checksum of the ${what} is wrong`, bytes.length - 4);
  const r = new ByteReader(body, 4);
  const version = r.u16be();
  if (version !== 1) throw new DecodeError(`${what} version ${version}`, 4);
  return r;
}

function end(r: ByteReader): void {
  if (r.remaining !== 0) throw new DecodeError('trailing bytes', r.offset);
}
