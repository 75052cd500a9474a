export * from './stock-postgres.ts';
export * from './cluster.ts';
