/** Byte readers and writers, CRC-32C, memory for runs of pages and for keys, memory that goes back at once, zstd of frames. The only place allowed unchecked indexing. */
export * from './reader.ts';
export * from './writer.ts';
export * from './crc32c.ts';
export * from './buffer-pool.ts';
export * from './off-heap.ts';
export * from './give-back.ts';
export * from './frame-compression.ts';
