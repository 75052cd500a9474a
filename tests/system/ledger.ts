/** A writer that inserts numbered rows through the proxy and remembers each acknowledged one, and the check that none is lost or doubled,
 *  and that nobody was told that the password is wrong.
 *  A row whose answer never came may or may not be there: both are right. */
import { sleep } from '@lakebase/base';
import type pg from 'pg';
const STATEMENT_MS = 20_000;

/** A cluster, or one project of it. */
export interface Connectable {
  connect(overrides?: pg.ClientConfig): Promise<pg.Client>;
  recentLogs?(): string;
}

export class Ledger {
  readonly acknowledged = new Set<number>();
  readonly attempted = new Set<number>();
  readonly errors = new Map<string, number>();
  readonly #cluster: Connectable;
  readonly #table: string;
  #next = 1;
  #running = false;
  #loops: Promise<void>[] = [];

  constructor(cluster: Connectable, table = 'ledger') {
    this.#cluster = cluster;
    this.#table = table;
  }

  async create(): Promise<void> {
    const client = await this.#cluster.connect();
    await client.query(`CREATE TABLE ${this.#table} (n bigint PRIMARY KEY, at timestamptz DEFAULT now(), filler text)`);
    await client.end();
  }

  start(writers = 2): void {
    this.#running = true;
    this.#loops = Array.from({ length: writers }, () => this.#write());
  }

  async stop(): Promise<void> {
    this.#running = false;
    await Promise.all(this.#loops);
  }

  /** Resolves when `more` further rows have been acknowledged. */
  async progress(more: number, ms = 60_000): Promise<void> {
    const goal = this.acknowledged.size + more;
    const deadline = performance.now() + ms;
    while (this.acknowledged.size < goal) {
      if (performance.now() > deadline)
        throw new Error(
          `no progress: ${this.acknowledged.size} of ${goal} rows after ${ms} ms; errors: ${JSON.stringify([...this.errors])}\n${this.#cluster.recentLogs?.() ?? ''}`,
        );
      await sleep(20);
    }
  }

  async verify(): Promise<void> {
    // Whatever has died: the password is right.
    const refused = [...this.errors.keys()].find((text) => text.includes('authentication failed'));
    if (refused !== undefined) throw new Error(`a client was turned away: ${refused}`);
    const client = await this.#cluster.connect();
    // The writers may go on: what was acknowledged before the snapshot must be in it, and both reads use one snapshot.
    const acknowledged = [...this.acknowledged];
    try {
      await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
      const { rows } = await client.query<{ n: string }>(`SELECT n FROM ${this.#table} ORDER BY n`);
      const present = rows.map((r) => Number(r.n));
      const unique = new Set(present);
      if (unique.size !== present.length) throw new Error('a row is there twice');
      const lost = acknowledged.filter((n) => !unique.has(n));
      if (lost.length > 0) throw new Error(`${lost.length} acknowledged rows are lost, for example ${lost.slice(0, 5).join(', ')}`);
      const invented = present.filter((n) => !this.attempted.has(n));
      if (invented.length > 0) throw new Error(`rows nobody wrote: ${invented.slice(0, 5).join(', ')}`);
      // The index must agree with the heap.
      const bySeq = await client.query<{ c: string }>(
        `SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off; SELECT count(*) AS c FROM ${this.#table}`,
      );
      const last = (bySeq as unknown as pg.QueryResult<{ c: string }>[]).at(-1);
      if (Number(last?.rows[0]?.c) !== present.length) throw new Error('heap and index disagree');
    } finally {
      await client.end();
    }
  }

  async #write(): Promise<void> {
    let client: pg.Client | undefined;
    while (this.#running) {
      const n = this.#next++;
      try {
        client ??= await this.#cluster.connect({ query_timeout: STATEMENT_MS, connectionTimeoutMillis: STATEMENT_MS });
        this.attempted.add(n);
        await client.query(`INSERT INTO ${this.#table} (n, filler) VALUES ($1, repeat('x', 100))`, [n]);
        this.acknowledged.add(n);
      } catch (error) {
        const text = error instanceof Error ? error.message : String(error);
        this.errors.set(text, (this.errors.get(text) ?? 0) + 1);
        await client?.end().catch(() => {});
        client = undefined;
        await sleep(50);
      }
    }
    await client?.end().catch(() => {});
  }
}
