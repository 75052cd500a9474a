export * from './counters.ts';
export * from './effects.ts';
export * from './heap/index.ts';
export { emitEffects, redo } from './dispatch.ts';
export { restoreBlockImage } from './image.ts';
export * from './side-delta.ts';
export * from './slru-order.ts';
