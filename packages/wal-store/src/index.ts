/** Durable write-ahead log on local disk: framed, checksummed, encrypted segment files, and the record-boundary tracker. */
export * from './record-boundary.ts';
export * from './wal-store.ts';
export { type SegmentIo, nodeIo } from './segment-io.ts';
export { isWithoutKey, storedReferences } from './segment-references.ts';
export { SEGMENT_HEADER_BYTES, FRAME_HEADER_BYTES, FRAME_PAYLOAD_MAX } from './segment-format.ts';
/** For tests and benchmarks of what stores or serves WAL. */
export { type SyntheticWal, syntheticWal } from './testing/synthetic-wal.ts';
