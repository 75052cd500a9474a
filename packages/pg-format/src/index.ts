/** Postgres's on-disk and in-WAL formats as values: records, WAL reading, pages, checkpoints, the control file. Sans I/O. */
export * from './constants.ts';
export * from './page.ts';
export * from './record.ts';
export * from './decode.ts';
export * from './record-crc.ts';
export * from './wal-reader.ts';
export * from './checkpoint.ts';
export * from './control-file.ts';
export * from './synth.ts';
export * from './scratch.ts';
