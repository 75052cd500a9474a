/** The WAL records of one block since its last full image, for the report of a mismatch. Read with pg_walinspect's C function, made as a temporary
 *  function; only what the compute's own pg_wal still holds. */
import { formatLsn, lsn, parseLsn, type RelTag, XLOG_BLCKSZ } from '@lakebase/ids';
import type pg from 'pg';

const SIGNATURE = `(IN in_start pg_lsn, IN in_end pg_lsn, IN show_data boolean, OUT start_lsn pg_lsn, OUT end_lsn pg_lsn, OUT prev_lsn pg_lsn, OUT block_id int2,
  OUT reltablespace oid, OUT reldatabase oid, OUT relfilenode oid, OUT relforknumber int2, OUT relblocknumber int8, OUT xid xid,
  OUT resource_manager text, OUT record_type text, OUT record_length int4, OUT main_data_length int4, OUT block_data_length int4,
  OUT block_fpi_length int4, OUT block_fpi_info text[], OUT description text, OUT block_data bytea, OUT block_fpi_data bytea)
  RETURNS SETOF record`;

export async function recordsOf(client: pg.Client, tag: RelTag, block: number, walStart: string): Promise<string[]> {
  try {
    await client.query(
      `CREATE OR REPLACE FUNCTION pg_temp.lb_blocks ${SIGNATURE} AS '$libdir/pg_walinspect', 'pg_get_wal_block_info' LANGUAGE C STRICT`,
    );
    const start = await firstRecord(client, walStart);
    const { rows } = await client.query<{ line: string; image: boolean }>(
      `SELECT start_lsn || ' ' || resource_manager || ' ' || record_type || ' ' || description AS line, block_fpi_length > 0 AS image
       FROM pg_temp.lb_blocks($1, pg_current_wal_flush_lsn(), false)
       WHERE reltablespace = $2 AND reldatabase = $3 AND relfilenode = $4 AND relforknumber = $5 AND relblocknumber = $6 ORDER BY start_lsn`,
      [start, tag.spc, tag.db, tag.rel, tag.fork, block],
    );
    const lastImage = rows.findLastIndex((row) => row.image);
    return rows.slice(Math.max(0, lastImage)).map((row) => `${row.line}${row.image ? ' (image)' : ''}`);
  } catch (error) {
    return [`no records: ${(error as Error).message}`];
  }
}

/** Where the compute's WAL can be read from: the page after its start LSN (what lies before on that page is not there), or with the oldest whole segment when that one has been removed. */
async function firstRecord(client: pg.Client, walStart: string): Promise<string> {
  const { rows } = await client.query<{ here: boolean; oldest: string }>(
    `SELECT bool_or(name = pg_walfile_name($1::pg_lsn)) AS here, min(name) AS oldest FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'`,
    [walStart],
  );
  if (rows[0]?.here === true) return formatLsn(lsn(Math.ceil(parseLsn(walStart) / XLOG_BLCKSZ) * XLOG_BLCKSZ));
  const name = rows[0]?.oldest ?? '';
  const offset = Number.parseInt(name.slice(16), 16) * 0x100_0000;
  return `${Number.parseInt(name.slice(8, 16), 16).toString(16)}/${offset.toString(16)}`;
}
