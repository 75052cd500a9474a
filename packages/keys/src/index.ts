/** Data keys for storage services: pools, caches, wiping, and the watch of the key manager. docs/flows/key-path.md */
export * from './key-watch.ts';
export * from './project-keys.ts';
export * from './key-ring.ts';
export * from './local-keys.ts';
export * from './plain-keys.ts';
