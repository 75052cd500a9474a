/** Reads tables' counters from a running Postgres every minute, for the case that it never gets to write them itself. Only of databases whose rows
 *  have changed since, one short connection each; what takes long is done less often. */
import { type Logger, errorMessage } from '@lakebase/base';
import { Client, type ClientConfig } from 'pg';
import { type TableStatistics, tableCounters, withTables } from './statistics-file.ts';

export const STATISTICS_FILE = 'pg_stat/pgstat.stat';
/** Many computes do not live for a minute. */
const FIRST_MS = 10_000;
const EVERY_MS = 60_000;
/** At most this part of the time is spent here. */
const SHARE = 1 / 100;

const DATABASES = `
  SELECT oid::int8 AS oid, datname AS name, pg_stat_get_db_tuples_inserted(oid) + pg_stat_get_db_tuples_updated(oid) + pg_stat_get_db_tuples_deleted(oid) AS rows
  FROM pg_database WHERE datallowconn AND NOT datistemplate`;
/** In the order of PgStat_StatTabEntry; the last four are new in 18. */
const FUNCTIONS = [
  'numscans',
  'lastscan',
  'tuples_returned',
  'tuples_fetched',
  'tuples_inserted',
  'tuples_updated',
  'tuples_deleted',
  'tuples_hot_updated',
  'tuples_newpage_updated',
  'live_tuples',
  'dead_tuples',
  'mod_since_analyze',
  'ins_since_vacuum',
  'blocks_fetched',
  'blocks_hit',
  'last_vacuum_time',
  'vacuum_count',
  'last_autovacuum_time',
  'autovacuum_count',
  'last_analyze_time',
  'analyze_count',
  'last_autoanalyze_time',
  'autoanalyze_count',
  'total_vacuum_time',
  'total_autovacuum_time',
  'total_analyze_time',
  'total_autoanalyze_time',
];
const isTime = (name: string): boolean => name.startsWith('last');
const MICROSECONDS_TO_2000 = 946_684_800_000_000;

const tablesQuery = (major: number, count: number): string => `
  SELECT c.oid::int8 AS oid, c.relisshared AS shared, ARRAY[${FUNCTIONS.slice(0, count)
    .map((name) =>
      isTime(name)
        ? `coalesce((extract(epoch FROM pg_stat_get_${name}(c.oid)) * 1000000)::int8 - ${MICROSECONDS_TO_2000}, 0)`
        : `pg_stat_get_${name}(c.oid)::int8`,
    )
    .join(', ')}] AS counters
  FROM pg_class c, (SELECT oid FROM pg_database WHERE datname = current_database()) d
  WHERE c.relkind IN ('r', 't', 'm', 'i') AND pg_stat_have_stats('relation', CASE WHEN c.relisshared THEN 0 ELSE d.oid END, c.oid${major >= 18 ? '::int8' : ''})`;

export interface PeriodicStatisticsOptions {
  readonly major: number;
  /** For any database; the connection is ours alone. */
  readonly connection: ClientConfig;
  /** The agent's own connection. */
  readonly sql: () => Promise<Client>;
  /** The file the start laid down. */
  readonly base: Buffer | undefined;
  readonly onFile: (file: Buffer) => void;
  readonly log: Logger;
  readonly firstMs?: number;
}

export class PeriodicStatistics {
  readonly #o: PeriodicStatisticsOptions;
  #file: Buffer | undefined;
  readonly #rows = new Map<number, string>();
  #timer: NodeJS.Timeout | undefined;
  #running: Promise<void> | undefined;
  #stopped = false;

  constructor(options: PeriodicStatisticsOptions) {
    this.#o = options;
    this.#file = options.base;
  }

  start(): void {
    this.#next(this.#o.firstMs ?? FIRST_MS);
  }

  async stop(): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#timer);
    await this.#running;
  }

  #next(ms: number): void {
    if (this.#stopped) return;
    this.#timer = setTimeout(() => {
      const began = performance.now();
      this.#running = this.#round()
        .catch((error: unknown) =>
          this.#o.log.warn({ err: errorMessage(error) }, 'statistics not read; a crash would set them back further'),
        )
        .then(() => this.#next(Math.max(EVERY_MS, (performance.now() - began) / SHARE)));
    }, ms);
    this.#timer.unref();
  }

  async #round(): Promise<void> {
    const sql = await this.#o.sql();
    const { rows } = await sql.query<{ oid: string; name: string; rows: string }>(DATABASES);
    let changed = 0;
    for (const database of rows) {
      const oid = Number(database.oid);
      if (this.#stopped || this.#rows.get(oid) === database.rows) continue;
      const file = withTables(this.#file, this.#o.major, oid, await this.#tables(database.name));
      if (file === undefined) continue;
      this.#rows.set(oid, database.rows);
      this.#file = file;
      changed++;
    }
    if (changed === 0 || this.#file === undefined || this.#stopped) return;
    this.#o.log.debug({ databases: changed, bytes: this.#file.length }, 'statistics read');
    this.#o.onFile(this.#file);
  }

  async #tables(database: string): Promise<TableStatistics[]> {
    const client = new Client({ ...this.#o.connection, database });
    client.on('error', () => {});
    await client.connect();
    try {
      const { rows } = await client.query<{ oid: string; shared: boolean; counters: string[] }>(
        tablesQuery(this.#o.major, tableCounters(this.#o.major)),
      );
      return rows.map((row) => ({ oid: Number(row.oid), shared: row.shared, counters: row.counters.map(Number) }));
    } finally {
      await client.end().catch(() => {});
    }
  }
}
