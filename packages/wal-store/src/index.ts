/** Durable write-ahead log on local disk: framed, checksummed, encrypted segment files, and the record-boundary tracker. */
export * from './record-boundary.ts';
export * from './wal-store.ts';
export { type SegmentIo, nodeIo } from './segment-io.ts';
export { isWithoutKey, storedReferences } from './segment-references.ts';
export { rewrapStored } from './segment-re-encryption.ts';
export { SEGMENT_HEADER_BYTES, FRAME_HEADER_BYTES, FRAME_PAYLOAD_MAX } from './segment-format.ts';
export {
  type FoundTrailer,
  WalObjectReader,
  readTrailer,
} from './wal-object-reader.ts';
export { type WalObjectHeader, type WalObjectTrailer, TRAILER_READ_BYTES, decodeTrailer } from './wal-object-format.ts';
export type { WalObjectName, WalSource } from './wal-object-writer.ts';
export {
  WAL_OBJECT_BYTES,
  type PutResult,
  WalArchive,
  type WalArchiveOptions,
  WalArchiveReader,
  type WalKeys,
  nextWalObject,
} from './wal-archive.ts';
/** For tests and benchmarks of what stores or serves WAL. */
export { type SyntheticWal, syntheticWal } from './testing/synthetic-wal.ts';
/** The bytes of a segment file, for those who check or show one without writing to it. */
export {
  FRAME_CONTEXT,
  FRAME_DATA,
  FRAME_EPOCH_AT,
  FRAME_TAG_AT,
  FRAME_TRUNCATE,
  type Frame,
  SEGMENT_MAGIC,
  type SegmentHeader,
  decodeSegmentHeader,
  encodeSegmentHeader,
} from './segment-format.ts';
export { type ScanHandler, type ScanResult, scanSegment } from './segment-scan.ts';
export { REFERENCES_MAGIC, decodeReferences } from './segment-references.ts';
