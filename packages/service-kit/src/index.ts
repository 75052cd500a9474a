/** What every service process shares: config file, logger, HTTP server with health, metrics and authentication, ordered start and stop. */
export * from './config.ts';
export * from './logger.ts';
export * from './http-server.ts';
export * from './main.ts';
export * from './postgres-installation.ts';
export * from './metrics.ts';
export * from './keys.ts';
export * from './memory.ts';
export * from './key-rotation.ts';
export * from './key-re-encryption.ts';
export * from './failpoints.ts';
export * from './object-store.ts';
export * from './object-store-probe.ts';
export * from './installation.ts';
export * from './scrub-jobs.ts';
export * from './inspect-routes.ts';
export * from './scrub-orphans.ts';
