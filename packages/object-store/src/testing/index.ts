export * from './memory-store.ts';
export * from './fault-store.ts';
export * from './conformance.ts';
export * from './create-bucket.ts';
