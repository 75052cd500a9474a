/** Adapters to the key management services that hold customers' keys; docs/operating/kms.md. */
export * from './types.ts';
export * from './errors.ts';
export * from './open.ts';
export * from './check.ts';
