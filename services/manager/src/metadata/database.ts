/** Access to the metadata database: pooled queries, transactions, migrations, and the lock that keeps a second Manager out.
 *  A lost connection before a statement was sent is retried for a while, so a restart of the metadata database is a pause, not an error. */
import { LakebaseError, type Logger, errorMessage, sleep } from '@lakebase/base';
import pg from 'pg';
import { migrations } from './migrations.ts';

const RECONNECT_MS_MAX = 10_000;
/** Any constant of ours: the advisory lock of the one Manager. */
const MANAGER_LOCK = 0x4c42_4d47;

pg.types.setTypeParser(pg.types.builtins.INT8, Number);

export type Row = Record<string, unknown>;
/** What stores need: the pool or one transaction. */
export interface Queryable {
  query<T extends object = Row>(sql: string, values?: readonly unknown[]): Promise<T[]>;
}

export class Database implements Queryable {
  readonly #pool: pg.Pool;
  readonly #config: pg.PoolConfig;
  readonly #log: Logger;
  #lock: pg.Client | undefined;
  #closed = false;

  constructor(config: pg.PoolConfig, log: Logger) {
    this.#config = config;
    this.#log = log;
    this.#pool = new pg.Pool({ ...config, max: 8, connectionTimeoutMillis: 5_000, application_name: 'lakebase-manager' });
    this.#pool.on('error', (error) => log.warn({ err: error.message }, 'lost an idle metadata connection'));
  }

  async query<T extends object = Row>(sql: string, values: readonly unknown[] = []): Promise<T[]> {
    return this.#use(async (client) => (await client.query(sql, values as unknown[])).rows as T[]);
  }

  async transaction<T>(work: (tx: Queryable) => Promise<T>): Promise<T> {
    return this.#use(async (client) => {
      await client.query('BEGIN');
      try {
        const result = await work({ query: async (sql, values = []) => (await client.query(sql, values as unknown[])).rows });
        await client.query('COMMIT');
        return result;
      } catch (error) {
        await client.query('ROLLBACK').catch(() => {});
        throw error;
      }
    });
  }

  /** Applies what is missing, in order, each in a transaction that also records it. */
  async migrate(): Promise<number> {
    await this.query(
      'CREATE TABLE IF NOT EXISTS schema_migrations (number int PRIMARY KEY, name text NOT NULL, applied_time timestamptz NOT NULL DEFAULT now())',
    );
    const done = new Set((await this.query<{ number: number }>('SELECT number FROM schema_migrations')).map((row) => row.number));
    const newest = Math.max(0, ...done);
    const known = migrations.at(-1)?.number ?? 0;
    if (newest > known)
      throw new LakebaseError(
        'CONFIG',
        `the metadata database is at migration ${newest} and this version knows ${known}: start a newer version`,
      );
    let applied = 0;
    for (const migration of migrations) {
      if (done.has(migration.number)) continue;
      await this.transaction(async (tx) => {
        await tx.query(migration.sql);
        await tx.query('INSERT INTO schema_migrations (number, name) VALUES ($1, $2)', [migration.number, migration.name]);
      });
      applied++;
    }
    return applied;
  }

  /** Holds the Manager lock for as long as the process lives; taken again when the database was restarted. */
  async lockOut(onLost: (error: Error) => void): Promise<void> {
    const deadline = Date.now() + 10_000;
    for (;;) {
      const client = new pg.Client(this.#config as pg.ClientConfig);
      client.on('error', () => {});
      await client.connect();
      const { rows } = await client.query<{ ok: boolean }>('SELECT pg_try_advisory_lock($1) AS ok', [MANAGER_LOCK]);
      if (rows[0]?.ok === true) {
        this.#lock = client;
        client.once('end', () => void this.#relock(onLost));
        return;
      }
      await client.end();
      if (Date.now() > deadline)
        throw new LakebaseError('CONFIG', 'another Manager uses this metadata database; stop it or name another database');
      await sleep(200);
    }
  }

  async #relock(onLost: (error: Error) => void): Promise<void> {
    const deadline = Date.now() + 60_000;
    while (!this.#closed) {
      try {
        await sleep(200);
        if (!this.#closed) await this.lockOut(onLost);
        return;
      } catch (error) {
        if (this.#closed) return;
        this.#log.warn({ err: errorMessage(error) }, 'cannot take the Manager lock again');
        if ((error instanceof LakebaseError && error.code === 'CONFIG') || Date.now() > deadline) return onLost(error as Error);
      }
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#lock?.end().catch(() => {});
    await this.#pool.end();
  }

  async #use<T>(work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    const client = await this.#connect();
    let broken: Error | undefined;
    try {
      return await work(client);
    } catch (error) {
      if (isConnectionError(error)) broken = error as Error;
      throw broken === undefined ? error : new LakebaseError('UNAVAILABLE', 'the metadata database went away; retry', { cause: error });
    } finally {
      client.release(broken);
    }
  }

  async #connect(): Promise<pg.PoolClient> {
    const deadline = Date.now() + RECONNECT_MS_MAX;
    for (;;) {
      try {
        const client = await this.#pool.connect();
        if (client.listenerCount('error') < 2) client.on('error', () => {});
        return client;
      } catch (error) {
        if (this.#closed || !isConnectionError(error) || Date.now() > deadline)
          throw new LakebaseError('UNAVAILABLE', `the metadata database does not answer: ${errorMessage(error)}`, { cause: error });
        await sleep(100);
      }
    }
  }
}

function isConnectionError(error: unknown): boolean {
  const code = (error as { code?: string }).code;
  if (code === undefined) return /terminated|timeout|closed|not queryable/i.test(errorMessage(error));
  return (
    code.startsWith('08') ||
    code.startsWith('57P') ||
    ['ECONNREFUSED', 'ECONNRESET', 'ENOENT', 'EPIPE', 'ETIMEDOUT', 'EHOSTUNREACH', 'ENOTFOUND', 'EAI_AGAIN'].includes(code)
  );
}

/** Postgres unique_violation. */
export const isDuplicate = (error: unknown): boolean => (error as { code?: string }).code === '23505';
