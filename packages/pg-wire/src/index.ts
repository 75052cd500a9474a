/** The Postgres wire protocol: framing, start-up, messages, SCRAM, replication payloads (all sans-I/O), and two thin socket helpers:
 *  {@link PgConnection} (client) and {@link PgServerSession} (server). Importing this package opens nothing. */
export * from './errors.ts';
export * from './framing.ts';
export * from './startup.ts';
export * from './options.ts';
export * from './backend.ts';
export * from './frontend.ts';
export * from './replication.ts';
export * from './scram-verifier.ts';
export * from './scram.ts';
export * from './connection.ts';
export * from './server-session.ts';
