export * from './object-store.ts';
export * from './keys.ts';
export * from './directory-store.ts';
export * from './config.ts';
export * from './open.ts';
