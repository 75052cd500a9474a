/** Keeps the catalog in the object store: every change that others may act on is a link of the chain there before it is committed here. Changes that
 *  come while a link is on its way share the next one. docs/formats/catalog-object.md
 *
 *  Invariants
 *  - A change is granted its commit only after the link that holds it is durable; refused, it is committed nowhere.
 *  - A link holds, before the changes of transactions that wait, everything that was committed without waiting: so for each row the later link has
 *    the later state.
 *  - When a put was not answered nobody knows whether its link is there. Nothing is granted until a snapshot of this database follows it.
 *  - A snapshot is taken when no granted commit is still under way.
 *  - A place in the chain that somebody else took means another Manager: nothing is granted any more. */
import { LakebaseError, type Logger, backoffDelay, errorMessage, failpoint, isCode, sleep } from '@lakebase/base';
import type { CommitGate, Database } from '../metadata/database.ts';
import { appliedMigration } from '../metadata/database.ts';
import { type CatalogChain, type Head, NOWHERE, type Position, type SealedLink } from './catalog-chain.ts';
import { catchUp, readLocal, writePosition } from './catalog-restore.ts';
import { type Change, type Changes, committedChanges, readSnapshot } from './change-log.ts';

export type CopyState = 'OK' | 'STORE_AWAY' | 'FENCED';

export interface CatalogCopyOptions {
  /** Connections of its own: those of changes that wait are taken. */
  readonly db: Database;
  readonly chain: CatalogChain;
  readonly installation: string;
  readonly log: Logger;
  readonly fail: (error: unknown) => void;
  /** A put that takes longer is given up, and the change refused. */
  readonly putMs?: number;
  /** Changes that do not wait are gathered for so long. */
  readonly gatherMs?: number;
  /** A snapshot after so many links. */
  readonly snapshotEvery?: number;
}

interface Waiting {
  readonly changes: readonly Change[];
  readonly grant: () => void;
  readonly refuse: (error: LakebaseError) => void;
}

const PUT_MS = 10_000;
const START_MS = 15_000;
const STARTS_MAX = 3;
const CONFIRMS_MAX = 20;
const GATHER_MS = 250;
const SNAPSHOT_EVERY = 100;
const SNAPSHOT_BYTES = 4 * 1024 * 1024;
const RETRY = { baseMs: 250, maxMs: 5_000 };
/** Snapshots that stay, with everything behind the oldest of them. */
const SNAPSHOTS_KEPT = 3;

export class CatalogCopy implements CommitGate {
  readonly #o: CatalogCopyOptions;
  readonly #stop = new AbortController();
  #state: CopyState = 'STORE_AWAY';
  #why = 'the object store was not asked yet';
  /** The database is known to have all that the chain has. */
  #current = false;
  #position: Position = NOWHERE;
  #head: Head = { snapshots: [], removed: 0 };
  #schema = 0;
  readonly #waiting: Waiting[] = [];
  /** Granted, and not committed yet. */
  readonly #committing = new Set<Promise<void>>();
  /** Hashes of links that were sent for the next place without an answer. */
  readonly #sent = new Set<string>();
  #gathering: NodeJS.Timeout | undefined;
  #behind = false;
  #snapshotDue = false;
  #linksSince = 0;
  #bytesSince = 0;
  #working: Promise<void> | undefined;
  #recovering: Promise<void> | undefined;

  constructor(options: CatalogCopyOptions) {
    this.#o = options;
  }

  get state(): CopyState {
    return this.#state;
  }
  get position(): Position {
    return this.#position;
  }
  /** For people: state, and what is wrong. */
  get health(): Record<string, unknown> {
    return { catalogCopy: this.#state, ...(this.#state === 'OK' ? {} : { catalogCopyProblem: this.#why }) };
  }

  /** Before the schema is looked at: the database is brought to the end of the chain. A store that does not answer is no reason not to start, unless there
   *  is nothing to start from. */
  async restore(): Promise<void> {
    try {
      await this.#catchUp(false);
    } catch (error) {
      const wrong = ['CONFIG', 'CORRUPT', 'CONFLICT', 'UNSUPPORTED'].some((code) => error instanceof LakebaseError && error.code === code);
      const { schema } = await readLocal(this.#o.db);
      if (wrong || schema === 0) throw error;
      this.#why = errorMessage(error);
      this.#o.log.error(
        { err: this.#why },
        'the copy of the catalog cannot be looked at: computes start and stop as always, changes by the API are refused until it can',
      );
    }
  }

  /** After the migrations. A first snapshot takes the place of whoever wrote before. */
  async start(): Promise<void> {
    this.#schema = await appliedMigration(this.#o.db);
    for (let attempt = 1; this.#current; attempt++) {
      try {
        await this.#snapshot();
        this.#state = 'OK';
        return;
      } catch (error) {
        if (!isCode(error, 'FENCED') || attempt === STARTS_MAX) return this.#away(error);
        // The last put of a Manager that was killed may come through this late.
        await this.#catchUp(false);
      }
    }
    this.#recoverSoon();
  }

  /** What was committed without waiting gets a moment to be copied. */
  async stop(): Promise<void> {
    clearTimeout(this.#gathering);
    this.#behind = true;
    this.#kick();
    await this.#working;
    this.#stop.abort(new LakebaseError('CLOSED', 'the Manager is stopping'));
    await this.#recovering;
    await this.#working;
    this.#refuseAll(this.#refusal());
  }

  // ---- the gate

  async commit(changes: readonly Change[], commit: () => Promise<void>): Promise<void> {
    if (this.#state !== 'OK' || this.#stop.signal.aborted) throw this.#refusal();
    const { promise, resolve } = Promise.withResolvers<void>();
    await new Promise<void>((granted, refuse) => {
      const grant = (): void => {
        this.#committing.add(promise);
        granted();
      };
      this.#waiting.push({ changes, grant, refuse });
      this.#kick();
    });
    try {
      await failpoint('manager.catalog.before-commit');
      await commit();
    } catch (error) {
      // The chain has it, and whether the database has, nobody knows: a snapshot says which.
      this.#snapshotDue = true;
      this.#kick();
      throw error;
    } finally {
      this.#committing.delete(promise);
      resolve();
    }
  }

  /** Nobody else had written to the chain at some moment after this was called. For answers that change nothing and others act upon. */
  async confirm(): Promise<void> {
    for (let attempt = 0; attempt < CONFIRMS_MAX; attempt++) {
      if (this.#state !== 'OK') throw this.#refusal();
      const number = this.#position.number + 1;
      const there = await this.#o.chain.hashAt(number, { signal: this.#deadline() });
      if (there === undefined) return;
      if (this.#position.number < number && !this.#sent.has(there)) {
        this.#away(this.#fenced({ number }));
        throw this.#refusal();
      }
      await this.#working; // it is ours, on its way
    }
    throw new LakebaseError('UNAVAILABLE', 'the catalog changes all the time: ask again');
  }

  changed(): void {
    if (this.#stop.signal.aborted) return;
    this.#gathering ??= setTimeout(() => {
      this.#gathering = undefined;
      this.#behind = true;
      this.#kick();
    }, this.#o.gatherMs ?? GATHER_MS).unref();
  }

  // ---- work

  #kick(): void {
    if (this.#state !== 'OK' || this.#working !== undefined) return;
    this.#working = this.#work().finally(() => {
      this.#working = undefined;
      if (this.#state === 'OK' && !this.#stop.signal.aborted && this.#hasWork()) this.#kick();
    });
  }

  #hasWork(): boolean {
    return this.#waiting.length > 0 || this.#behind || this.#snapshotDue;
  }

  async #work(): Promise<void> {
    // Whoever comes in the same turn shares the link.
    await Promise.resolve();
    while (this.#hasWork() && this.#state === 'OK') {
      try {
        if (this.#snapshotDue) await this.#snapshot();
        else await this.#link();
      } catch (error) {
        return this.#away(error);
      }
    }
  }

  /** One link for everybody who waits. */
  async #link(): Promise<void> {
    const batch = this.#waiting.splice(0);
    this.#behind = false;
    let committed: Change[];
    try {
      committed = await committedChanges(this.#o.db);
      const changes = [...committed, ...batch.flatMap((b) => b.changes)].sort((a, b) => a.id - b.id);
      if (changes.length > 0) await this.#put('changes', { changes } satisfies Changes);
    } catch (error) {
      this.#waiting.unshift(...batch); // refused together with those that came meanwhile
      throw error;
    }
    for (const { grant } of batch) grant();
    // The position says what this database contains: also to a backup that is taken at this very moment.
    await Promise.all(this.#committing);
    if (committed.length > 0 || batch.length > 0) await this.#note(committed.map((c) => c.id));
    if (this.#linksSince >= (this.#o.snapshotEvery ?? SNAPSHOT_EVERY) || this.#bytesSince >= SNAPSHOT_BYTES) this.#snapshotDue = true;
  }

  /** The whole state as the next link, and a head that names it. */
  async #snapshot(): Promise<void> {
    const { db, chain, log } = this.#o;
    await Promise.all(this.#committing);
    this.#snapshotDue = false;
    this.#behind = false;
    const content = await db.transaction(async (tx) => {
      await tx.query('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY');
      return readSnapshot(tx);
    });
    await this.#put('snapshot', content);
    const snapshots = [this.#position.number, ...this.#head.snapshots].slice(0, SNAPSHOTS_KEPT);
    const removable = (snapshots.at(-1) as number) - 1;
    const removed = this.#head.removed;
    await failpoint('manager.catalog.before-head');
    await chain.putHead({ snapshots, removed: this.#head.removed }, { signal: this.#deadline() });
    this.#head = { snapshots, removed: snapshots.length < SNAPSHOTS_KEPT ? removed : removable };
    this.#linksSince = 0;
    this.#bytesSince = 0;
    await this.#note(content.contains);
    if (this.#head.removed > removed)
      // What a failure leaves is removed after the next snapshot: the head in the store says up to where it was done before.
      await chain.remove(removed + 1, this.#head.removed).catch((error: unknown) => {
        this.#head = { snapshots, removed };
        log.warn({ err: errorMessage(error) }, 'old links of the catalog are not removed yet');
      });
  }

  /** Durable on return, and the position is behind it. */
  async #put(kind: 'changes' | 'snapshot', content: unknown): Promise<void> {
    const { chain } = this.#o;
    for (;;) {
      const link = await chain.seal(this.#position, kind, this.#schema, content);
      this.#sent.add(link.hash);
      try {
        await failpoint('manager.catalog.before-put');
        await chain.put(link, { signal: this.#deadline() });
      } catch (error) {
        if (!isCode(error, 'ALREADY_EXISTS')) throw error;
        const there = await chain.hashAt(link.number, { signal: this.#deadline() });
        if (there !== link.hash) {
          if (there === undefined || !this.#sent.has(there)) throw this.#fenced(link);
          // An earlier one of ours came through after all. Only a snapshot, which says everything, may follow it.
          if (kind !== 'snapshot') throw error;
          this.#position = { number: link.number, hash: there };
          this.#sent.clear();
          continue;
        }
      }
      this.#position = { number: link.number, hash: link.hash };
      this.#sent.clear();
      this.#linksSince++;
      this.#bytesSince += link.bytes.length;
      return;
    }
  }

  /** What is in the chain leaves the outbox. Not synced: a start finds out by itself what the chain has. */
  async #note(ids: readonly number[]): Promise<void> {
    const { db, installation, log } = this.#o;
    try {
      await db.transaction(async (tx) => {
        await tx.query('SET LOCAL synchronous_commit = off');
        if (ids.length > 0) await tx.query('DELETE FROM catalog_outbox WHERE id = ANY ($1)', [ids]);
        await writePosition(tx, installation, this.#position);
      });
    } catch (error) {
      // They would be sent once more, over later states of the same rows.
      this.#snapshotDue = true;
      log.warn({ err: errorMessage(error) }, 'cannot note in the metadata database what is copied; a snapshot follows');
    }
  }

  // ---- a store that does not answer

  #deadline(ms = this.#o.putMs ?? PUT_MS): AbortSignal {
    return AbortSignal.any([this.#stop.signal, AbortSignal.timeout(ms)]);
  }

  #refusal(): LakebaseError {
    if (this.#stop.signal.aborted) return new LakebaseError('CLOSED', 'the Manager is stopping');
    // Not FENCED: to a pageserver that would mean its project.
    if (this.#state === 'FENCED') return new LakebaseError('UNAVAILABLE', this.#why);
    return new LakebaseError(
      'UNAVAILABLE',
      `nothing was changed: the object store does not take the copy of the catalog, without which the loss of one disk would undo the change; databases run on; try again once it answers (${this.#why})`,
    );
  }

  #refuseAll(error: LakebaseError): void {
    for (const { refuse } of this.#waiting.splice(0)) refuse(error);
  }

  #fenced(link: Pick<SealedLink, 'number'>): LakebaseError {
    return new LakebaseError(
      'FENCED',
      `another Manager has written link ${link.number} of the catalog in ${this.#o.chain.location}: this one changes nothing any more; stop one of the two, and start the other anew`,
    );
  }

  #away(error: unknown): void {
    this.#why = errorMessage(error);
    if (isCode(error, 'FENCED')) {
      this.#state = 'FENCED';
      this.#o.log.error({ err: this.#why }, 'another Manager has taken over the catalog');
      return this.#refuseAll(this.#refusal());
    }
    if (this.#state === 'OK')
      this.#o.log.error(
        { err: this.#why },
        'the catalog is not copied to the object store: changes by the API are refused until it is; databases run on',
      );
    this.#state = 'STORE_AWAY';
    this.#refuseAll(this.#refusal());
    this.#recoverSoon();
  }

  #recoverSoon(): void {
    if (this.#stop.signal.aborted) return;
    this.#recovering ??= this.#recover().finally(() => {
      this.#recovering = undefined;
      this.#kick();
    });
  }

  async #recover(): Promise<void> {
    const { log, fail } = this.#o;
    const since = performance.now();
    for (let attempt = 0; !this.#stop.signal.aborted; attempt++) {
      await this.#working;
      await sleep(backoffDelay(attempt, RETRY), this.#stop.signal).catch(() => {});
      if (this.#stop.signal.aborted) return;
      try {
        if (!this.#current) await this.#catchUp(true);
        await this.#snapshot();
        this.#state = 'OK';
        log.warn({ seconds: Math.round((performance.now() - since) / 1_000) }, 'the catalog is copied to the object store again');
        return;
      } catch (error) {
        this.#why = errorMessage(error);
        if (isCode(error, 'FENCED')) return this.#away(error);
        log.debug({ attempt, err: this.#why }, 'the catalog is not copied yet');
        // The store is there, and says that this database is not what it was taken for.
        if (!this.#current && (isCode(error, 'CONFLICT') || isCode(error, 'CONFIG') || isCode(error, 'CORRUPT'))) return fail(error);
      }
    }
  }

  async #catchUp(inUse: boolean): Promise<void> {
    const { db, chain, installation, log } = this.#o;
    const { head, number, hash } = await catchUp({ db, chain, installation, log, signal: this.#deadline(START_MS), inUse });
    this.#position = { number, hash };
    this.#head = head ?? { snapshots: [], removed: 0 };
    this.#current = true;
  }
}
