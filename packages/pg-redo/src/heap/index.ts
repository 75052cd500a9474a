/** Heap, heap2, visibility map and free space map. */
export * from './fsm.ts';
export * from './heap-delta.ts';
export * from './effects.ts';
export { heapRedo } from './heap-redo.ts';
export { heap2Redo } from './heap2-redo.ts';
export * from './vm.ts';
