/** Layers: the key space, immutable delta and image files, the in-memory layer, the timeline index, and reads over all of them. */
export * from './key.ts';
export * from './entry.ts';
export * from './series-table.ts';
export * from './open-layer.ts';
export * from './floors.ts';
export * from './durable.ts';
export * from './frame-cache.ts';
export * from './layer-name.ts';
export * from './layer-reader.ts';
export * from './layer-writer.ts';
export * from './layer-cursor.ts';
export * from './layer-set.ts';
export * from './page-reader.ts';
export * from './scan.ts';
export * from './flush.ts';
export * from './compaction.ts';
export * from './timeline-index.ts';
