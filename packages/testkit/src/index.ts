export * from './stock-postgres.ts';
