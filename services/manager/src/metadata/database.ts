/** Access to the metadata database: pooled queries, transactions, migrations, and the lock that keeps a second Manager out.
 *  A lost connection before a statement was sent is retried for a while, so a restart of the metadata database is a pause, not an error.
 *  Invariant: with a {@link CommitGate}, a change is in the object store before it is committed here, so before anybody can see it; only what was
 *  written through {@link Database.local} follows later. docs/formats/catalog-object.md */
import { LakebaseError, type Logger, Slots, errorMessage, sleep } from '@lakebase/base';
import pg from 'pg';
import { type Change, takeOwnChanges } from '../durability/change-log.ts';
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

const CONNECTIONS_FREE = 5;

/** What stands between a change and its commit. */
export interface CommitGate {
  /** Carries `commit` out once the changes are safe; rejects without it, or with its error. */
  commit(changes: readonly Change[], commit: () => Promise<void>): Promise<void>;
  /** Something was committed that did not wait. */
  changed(): void;
  /** Resolves when this database was the newest there is at some moment after the call. */
  confirm(): Promise<void>;
}
export interface DatabaseOptions {
  readonly connectionsMax?: number;
  /** Changes are noted for the copy in the object store. */
  readonly copied?: boolean;
}

export class Database implements Queryable {
  readonly #pool: pg.Pool;
  readonly #config: pg.PoolConfig;
  readonly #log: Logger;
  readonly #copied: boolean;
  #gate: CommitGate | undefined;
  /** Changes that wait hold a connection each: some are left for everything else. */
  readonly #gated: Slots;
  #lock: pg.Client | undefined;
  #closed = false;
  /** For what may be lost with this database's disk: what was observed and can be observed again, and what holds for minutes. It is committed at
   *  once, whether or not the object store answers, and copied soon. */
  readonly local: Queryable & Pick<Database, 'transaction'>;

  constructor(config: pg.PoolConfig, log: Logger, { connectionsMax = 12, copied = false }: DatabaseOptions = {}) {
    this.#config = config;
    this.#log = log;
    this.#copied = copied;
    this.#gated = new Slots(Math.max(1, connectionsMax - CONNECTIONS_FREE));
    this.#pool = new pg.Pool({
      ...config,
      max: connectionsMax,
      connectionTimeoutMillis: 5_000,
      application_name: 'lakebase-manager',
      ...(copied ? { options: '-c lakebase.copied=on' } : {}),
    });
    this.local = {
      query: async (sql, values = []) => {
        const rows = await this.#use(async (client) => (await client.query(sql, values as unknown[])).rows);
        if (!isRead(sql)) this.#gate?.changed();
        return rows;
      },
      transaction: async (work) => {
        const result = await this.#transaction(work, undefined);
        this.#gate?.changed();
        return result;
      },
    };
    this.#pool.on('error', (error) => log.warn({ err: error.message }, 'lost an idle metadata connection'));
  }

  /** From here on changes wait for the gate. */
  setGate(gate: CommitGate): void {
    if (!this.#copied) throw new LakebaseError('INTERNAL', 'changes of this database are not noted');
    this.#gate = gate;
  }

  /** For answers that others act upon although nothing is changed: rejects when another Manager may have taken over. */
  async confirmNewest(): Promise<void> {
    await this.#gate?.confirm();
  }

  async query<T extends object = Row>(sql: string, values: readonly unknown[] = []): Promise<T[]> {
    if (this.#gate !== undefined && !isRead(sql)) return this.transaction((tx) => tx.query<T>(sql, values));
    return this.#use(async (client) => (await client.query(sql, values as unknown[])).rows as T[]);
  }

  transaction<T>(work: (tx: Queryable) => Promise<T>): Promise<T> {
    const gate = this.#gate;
    return gate === undefined ? this.#transaction(work, gate) : this.#gated.use(() => this.#transaction(work, gate));
  }

  async #transaction<T>(work: (tx: Queryable) => Promise<T>, gate: CommitGate | undefined): Promise<T> {
    return this.#use(async (client) => {
      const commit = async (): Promise<void> => void (await client.query('COMMIT'));
      let writes = false;
      const tx: Queryable = {
        query: async (sql, values = []) => {
          writes ||= !isRead(sql);
          return (await client.query(sql, values as unknown[])).rows;
        },
      };
      await client.query('BEGIN');
      try {
        const result = await work(tx);
        const changes = gate === undefined || !writes ? [] : await takeOwnChanges(tx);
        if (gate === undefined || changes.length === 0) await commit();
        else await gate.commit(changes, commit);
        return result;
      } catch (error) {
        await client.query('ROLLBACK').catch(() => {});
        throw error;
      }
    });
  }

  /** Applies what is missing, in order, each in a transaction that also records it. */
  async migrate(): Promise<number> {
    const done = await appliedMigration(this);
    const known = migrations.at(-1)?.number ?? 0;
    if (done > known)
      throw new LakebaseError(
        'CONFIG',
        `the metadata database is at migration ${done} and this version knows ${known}: start a newer version`,
      );
    let applied = 0;
    for (const { number } of migrations) {
      if (number <= done) continue;
      await this.transaction((tx) => applyMigrations(tx, number));
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

/** Statements that change nothing; everything else is looked at for changes. */
const isRead = (sql: string): boolean => /^\s*SELECT\b/i.test(sql);

/** Number of the newest step; 0: none yet. */
export async function appliedMigration(q: Queryable): Promise<number> {
  const [there] = await q.query<{ there: boolean }>(`SELECT to_regclass('schema_migrations') IS NOT NULL AS there`);
  if (there?.there !== true) return 0;
  return (await q.query<{ number: number }>('SELECT coalesce(max(number), 0) AS number FROM schema_migrations'))[0]?.number ?? 0;
}

/** The steps up to this one that are missing. */
export async function applyMigrations(tx: Queryable, through: number): Promise<void> {
  await tx.query(
    'CREATE TABLE IF NOT EXISTS schema_migrations (number int PRIMARY KEY, name text NOT NULL, applied_time timestamptz NOT NULL DEFAULT now())',
  );
  const done = await appliedMigration(tx);
  for (const { number, name, sql } of migrations) {
    if (number <= done || number > through) continue;
    await tx.query(sql);
    await tx.query('INSERT INTO schema_migrations (number, name) VALUES ($1, $2)', [number, name]);
  }
}
