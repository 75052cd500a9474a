export * from './effects.ts';
export * from './heap/index.ts';
