/** Election, log matching, commit LSN, membership and control file of the WAL quorum. No I/O: docs/protocols/election.md and membership.md say who calls what when. */
export * from './types.ts';
export * from './history.ts';
export * from './configuration.ts';
export * from './acceptor.ts';
export * from './commit.ts';
export * from './election.ts';
export * from './control.ts';
export * from './lineage.ts';
export * from './recovery.ts';
