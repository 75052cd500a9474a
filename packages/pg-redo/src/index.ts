export * from './effects.ts';
export * from './heap/index.ts';
export { emitEffects, redo } from './dispatch.ts';
export * from './side-delta.ts';
