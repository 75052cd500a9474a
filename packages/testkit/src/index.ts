export * from './stock-postgres.ts';
export * from './cluster.ts';
export * from './cluster-internals.ts';
