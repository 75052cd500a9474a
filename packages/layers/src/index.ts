/** Layers: the key space, immutable delta and image files, the in-memory layer, the timeline index, and reads over all of them. */
export * from './key.ts';
export * from './entry.ts';
export * from './series-table.ts';
export * from './open-layer.ts';
export * from './floors.ts';
export * from './durable.ts';
export * from './frame-cache.ts';
export * from './layer-name.ts';
export * from './layer-bytes.ts';
export * from './remote-miss.ts';
export * from './cached-layer.ts';
export * from './layer-cache.ts';
export * from './limiter.ts';
export * from './layer-reader.ts';
export * from './layer-writer.ts';
export * from './layer-cursor.ts';
export * from './layer-set.ts';
export * from './page-reader.ts';
export * from './scan.ts';
export * from './flush.ts';
export * from './compaction.ts';
export * from './re-encrypt.ts';
export * from './object-keys.ts';
export * from './sealed-object.ts';
export * from './timeline-index.ts';
/** The bytes of a layer file, for those who check or show one without searching it. */
export { FrameIndex, type Pack } from './frame-index.ts';
export {
  FOOTER_BYTES,
  HEADER_BYTES_MAX,
  LAYER_MAGIC,
  type LayerFooter,
  type LayerHeader,
  type LayerKind,
  decodeFooter,
  decodeHeader,
  layerBinding,
} from './layer-format.ts';
