/** A stock server whose WAL goes to three members, in term 1, and a session on it.
 *  Invariant: whatever goes wrong on the way there, nothing is left running: a server or a listener that is forgotten keeps its test file from ending. */
import { type Logger, disarmFailpoints, silentLogger } from '@lakebase/base';
import type { PgConnection } from '@lakebase/pg-wire';
import type { SafekeeperConfig } from '../config.ts';
import { Quorum, StockServer } from './rig.ts';

const SYNC = { synchronous_standby_names: 'ANY 2 (sk1,sk2,sk3)' };

export interface RunningOptions {
  readonly log?: Logger;
  /** Configuration of sk1 alone. */
  readonly first?: Partial<SafekeeperConfig>;
  /** Of every member; gets the directory that is removed with them. */
  readonly all?: (root: string) => Partial<SafekeeperConfig>;
  /** First statement of the session. */
  readonly sql?: string;
}

export class Running implements AsyncDisposable {
  readonly server = new StockServer({ 'lakebase.term': '1' });
  #quorum: Quorum | undefined;
  #sql: PgConnection | undefined;

  private constructor() {}

  static async start(options: RunningOptions = {}): Promise<Running> {
    const running = new Running();
    try {
      await running.#start(options);
      return running;
    } catch (error) {
      await running[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #start({ log = silentLogger, first, all, sql }: RunningOptions): Promise<void> {
    await this.server.start();
    this.#quorum = await Quorum.start(log, first, all);
    await this.#quorum.create(this.server);
    await this.#quorum.elect(1);
    await this.#quorum.subscribe(this.server, 1);
    this.server.reload(SYNC);
    this.#sql = await this.server.connect();
    if (sql !== undefined) await this.#sql.query(sql);
  }

  get quorum(): Quorum {
    return this.#quorum as Quorum;
  }
  get sql(): PgConnection {
    return this.#sql as PgConnection;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    disarmFailpoints();
    this.#sql?.destroy();
    try {
      await this.#quorum?.[Symbol.asyncDispose]();
    } finally {
      await this.server[Symbol.asyncDispose]();
    }
  }
}
