/** Domain identifiers: the only parsers, printers and comparators for them. */
export * from './lsn.ts';
export * from './names.ts';
export * from './rel.ts';
