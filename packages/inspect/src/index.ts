/** Every stored format of ours, shown for a person and checked whole: layers, indexes, sealed objects, WAL segments, control files, pages. */
export * from './byte-source.ts';
export * from './report.ts';
export * from './layer-check.ts';
export * from './layer-report.ts';
export * from './sealed-report.ts';
export * from './segment-check.ts';
export * from './segment-report.ts';
export * from './wal-object-report.ts';
export * from './control-report.ts';
export * from './page-report.ts';
export * from './inspect.ts';
