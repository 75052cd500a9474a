/** A metadata database with its copy in a store of a test, without the rest of a Manager: lost, put back and started again at will. */
import { createHmac, randomBytes } from 'node:crypto';
import { INSTALLATION_REFERENCE_BYTES } from '@lakebase/api';
import { LakebaseError, silentLogger } from '@lakebase/base';
import type { ObjectStore } from '@lakebase/object-store';
import { CatalogChain } from '../durability/catalog-chain.ts';
import { CatalogCopy, type CatalogCopyOptions } from '../durability/catalog-copy.ts';
import { RELATIONS } from '../durability/change-log.ts';
import { type RootKeyClient, RootKeys } from '../durability/root-keys.ts';
import { Database } from '../metadata/database.ts';

/** Keys without a key manager. */
export class FakeRootKeys implements RootKeyClient {
  root = 'root';
  installationDeks(count: number): ReturnType<RootKeyClient['installationDeks']> {
    return Promise.resolve(
      Array.from({ length: count }, () => {
        const reference = randomBytes(INSTALLATION_REFERENCE_BYTES - 4);
        const whole = Buffer.concat([Buffer.from(this.root.padEnd(4).slice(0, 4)), reference]);
        return { dek: this.#dek(whole), reference: whole };
      }),
    );
  }
  installationUnwrap(references: readonly Buffer[]): Promise<Buffer[]> {
    if (references.some((r) => r.toString('latin1', 0, 4) !== this.root.padEnd(4).slice(0, 4)))
      return Promise.reject(new LakebaseError('CONFIG', 'another root key'));
    return Promise.resolve(references.map((r) => this.#dek(r)));
  }
  #dek(reference: Buffer): Buffer {
    return createHmac('sha256', this.root).update(reference).digest();
  }
}

export interface CopiedOptions extends Partial<Pick<CatalogCopyOptions, 'putMs' | 'gatherMs' | 'snapshotEvery' | 'installation'>> {
  readonly keys?: RootKeyClient;
}

export class CopiedDatabase implements AsyncDisposable {
  readonly db: Database;
  readonly copy: CatalogCopy;
  readonly chain: CatalogChain;
  readonly failures: unknown[] = [];
  readonly #side: Database;

  private constructor(url: string, store: ObjectStore, options: CopiedOptions) {
    const { installation = 'a'.repeat(32), keys = new FakeRootKeys(), ...rest } = options;
    this.db = new Database({ connectionString: url }, silentLogger, { copied: true });
    this.#side = new Database({ connectionString: url }, silentLogger, { connectionsMax: 2 });
    this.chain = new CatalogChain({ store, keys: new RootKeys(keys), installation });
    const fail = (error: unknown): void => void this.failures.push(error);
    this.copy = new CatalogCopy({ db: this.#side, chain: this.chain, installation, log: silentLogger, fail, ...rest });
  }

  /** As the Manager does at its start. */
  static async start(url: string, store: ObjectStore, options: CopiedOptions = {}): Promise<CopiedDatabase> {
    const made = new CopiedDatabase(url, store, options);
    try {
      await made.copy.restore();
      await made.db.migrate();
      await made.copy.start();
    } catch (error) {
      await made.#close();
      throw error;
    }
    made.db.setGate(made.copy);
    return made;
  }

  /** Everything that a restore has to bring back, as text. */
  async content(): Promise<Record<string, string>> {
    const all: Record<string, string> = {};
    for (const name of RELATIONS) {
      const [row] = await this.db.query<{ rows: string }>(
        `SELECT coalesce(jsonb_agg(r ORDER BY r::text), '[]')::text AS rows FROM (SELECT to_jsonb(t) AS r FROM ${name} t) AS q`,
      );
      all[name] = row?.rows ?? '';
    }
    return all;
  }

  /** As a kill would: what waits to be copied is not. */
  async kill(): Promise<void> {
    await this.#close();
    await this.copy.stop();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.copy.stop();
    await this.#close();
  }

  async #close(): Promise<void> {
    await this.db.close();
    await this.#side.close();
  }
}
