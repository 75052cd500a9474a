/** Contracts between processes: request and response types, typed clients, the page service codec, internal tokens.
 *  Services import each other only through this package. */
export * from './internal-auth.ts';
export * from './http-client.ts';
export * from './safekeeper.ts';
export * from './pageserver.ts';
export * from './placement.ts';
export * from './compute.ts';
export * from './manager-internal.ts';
export * from './page-service.ts';
export * from './frame-receiver.ts';
export * from './start-bundle.ts';
export * from './owned-settings.ts';
export * from './key-manager.ts';
export * from './inspect.ts';
export * from './scrub.ts';
