export * from './stock-postgres.ts';
export * from './cluster.ts';
export * from './cluster-internals.ts';
export * from './find-tool.ts';
