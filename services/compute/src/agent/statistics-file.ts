/** `pg_stat/pgstat.stat`: Postgres writes it when it shuts down and reads it when it starts. Here tables' counters of one database are put into the
 *  file of the last shutdown, so that a start after a crash has them as of a while ago instead of as of long ago.
 *  Invariant: a file is changed only when all of it was understood, to its last byte; anything else (an extension's own kind of statistics,
 *  a format of another minor version) gives undefined. Layouts: pgstat.h, pgstat.c, little-endian; each major its own sizes. */

interface Layout {
  /** PGSTAT_FILE_FORMAT_ID. */
  readonly format: number;
  /** Bytes of an object's id in PgStat_HashKey. */
  readonly idBytes: 4 | 8;
  /** Fixed statistics: all in a row before 18, tagged by kind from 18 on. */
  readonly fixedBytes: number;
  readonly fixedKinds: Readonly<Record<number, number>>;
  /** Bytes of an entry by kind: database, relation, function, slot, subscription. */
  readonly entryBytes: Readonly<Record<number, number>>;
  /** Counters in PgStat_StatTabEntry. */
  readonly tableCounters: number;
}

const KIND_RELATION = 2;

const LAYOUTS: Readonly<Record<number, Layout>> = {
  16: layout(0x01a5bcac, 4, 136 + 32 + 56 + 14_344 + 512 + 72, {}, { 1: 248, 2: 184, 3: 24, 4: 72, 5: 24 }),
  17: layout(0x01a5bcac, 4, 136 + 32 + 72 + 16_392 + 512 + 72, {}, { 1: 248, 2: 184, 3: 24, 4: 72, 5: 24 }),
  18: layout(0x01a5bcb7, 8, 0, { 7: 136, 8: 32, 9: 88, 10: 51_848, 11: 512, 12: 40 }, { 1: 264, 2: 216, 3: 24, 4: 72, 5: 80 }),
};
const NAME_BYTES = 64;
const TAG_FIXED = 0x46;
const TAG_HASH = 0x53;
const TAG_NAME = 0x4e;
const TAG_END = 0x45;

function layout(
  format: number,
  idBytes: 4 | 8,
  fixedBytes: number,
  fixedKinds: Layout['fixedKinds'],
  entryBytes: Layout['entryBytes'],
): Layout {
  return { format, idBytes, fixedBytes, fixedKinds, entryBytes, tableCounters: (entryBytes[KIND_RELATION] as number) / 8 };
}

/** Counters of a table or index in the order of PgStat_StatTabEntry; times in microseconds since 2000, 0 for never. */
export interface TableStatistics {
  readonly oid: number;
  /** Of a catalog that all databases share. */
  readonly shared: boolean;
  readonly counters: readonly number[];
}

export const tableCounters = (major: number): number => LAYOUTS[major]?.tableCounters ?? 0;

/** `base`, or a file without anything else, with these tables as the whole of what is known of tables of `database` and of shared ones. */
export function withTables(
  base: Buffer | undefined,
  major: number,
  database: number,
  tables: readonly TableStatistics[],
): Buffer | undefined {
  const l = LAYOUTS[major];
  if (l === undefined) return undefined;
  const kept = base === undefined ? [emptyHead(l)] : keepOthers(base, l, database);
  if (kept === undefined) return undefined;
  for (const table of tables) {
    if (table.counters.length !== l.tableCounters) return undefined;
    kept.push(encodeTable(l, table.shared ? 0 : database, table));
  }
  kept.push(Buffer.from([TAG_END]));
  return Buffer.concat(kept);
}

function emptyHead(l: Layout): Buffer {
  const head = Buffer.alloc(4 + l.fixedBytes);
  head.writeUInt32LE(l.format, 0);
  return head;
}

/** The head and all entries but those of tables of `database` and shared ones. */
function keepOthers(bytes: Buffer, l: Layout, database: number): Buffer[] | undefined {
  let at = 4 + l.fixedBytes;
  if (bytes.length < at + 1 || bytes.readUInt32LE(0) !== l.format) return undefined;
  const kept = [bytes.subarray(0, at)];
  while (at < bytes.length) {
    const start = at;
    const tag = bytes[at++];
    if (tag === TAG_END) return at === bytes.length ? kept : undefined;
    if (at + 8 > bytes.length) return undefined;
    const kind = bytes.readUInt32LE(at);
    const length = tag === TAG_FIXED ? l.fixedKinds[kind] : l.entryBytes[kind];
    if (length === undefined || (tag !== TAG_FIXED && tag !== TAG_HASH && tag !== TAG_NAME)) return undefined;
    const ours = tag === TAG_HASH && kind === KIND_RELATION && [0, database].includes(bytes.readUInt32LE(at + 4));
    at += 4 + (tag === TAG_HASH ? 4 + l.idBytes : tag === TAG_NAME ? NAME_BYTES : 0) + length;
    if (!ours) kept.push(bytes.subarray(start, at));
  }
  return undefined; // no end
}

function encodeTable(l: Layout, database: number, table: TableStatistics): Buffer {
  const bytes = Buffer.alloc(1 + 8 + l.idBytes + l.tableCounters * 8);
  bytes[0] = TAG_HASH;
  bytes.writeUInt32LE(KIND_RELATION, 1);
  bytes.writeUInt32LE(database, 5);
  bytes.writeUInt32LE(table.oid, 9);
  let at = 9 + l.idBytes;
  for (const counter of table.counters) {
    bytes.writeBigInt64LE(BigInt(Math.trunc(counter)), at);
    at += 8;
  }
  return bytes;
}
