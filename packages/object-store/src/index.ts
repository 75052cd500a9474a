export * from './object-store.ts';
export * from './keys.ts';
export * from './directory-store.ts';
