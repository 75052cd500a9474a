/** Election, log matching, commit LSN and control file of the WAL quorum. No I/O: docs/protocols/election.md says who calls what when. */
export * from './types.ts';
export * from './history.ts';
export * from './acceptor.ts';
export * from './commit.ts';
export * from './election.ts';
export * from './control.ts';
