/** Generations given out and confirmed, and projects moved between pageservers (docs/protocols/generations.md).
 *  A move: what the old one has goes up → the new one gets the next generation, lays the project out and catches up, while the old one goes on
 *  serving → the new one serves, running computes are told → the old one lets go. Every step can be repeated; a move that was cut short is
 *  finished at the next start. */
import type {
  AttachAnswer,
  AttachRequest,
  AttachedProject,
  IndexPlace,
  Placement,
  PublishedAnswer,
  ValidateAnswer,
  ValidateRequest,
} from '@lakebase/api';
import { LakebaseError, type Logger, SerialQueue, errorMessage, sleep } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import { type FarEnd, type FarPageserver, ignoreNotFound } from '../far-end.ts';
import type { Database } from '../metadata/database.ts';
import type { NodeDisk } from '../model/least-loaded.ts';
import * as store from '../store/placements.ts';

export interface PlacementContext {
  readonly db: Database;
  readonly far: FarEnd;
  readonly log: Logger;
}

const placeOf = (row: store.PublishedRow): IndexPlace => ({ generation: row.published_generation, version: row.published_version });
/** Upload of what the old one has not put yet; longer, and the new one ingests it itself. */
const UPLOAD_MS = 60_000;
const CATCH_UP_MS = 120_000;
/** Close enough to switch: reads wait for the rest. */
const LAG_BYTES_MAX = 256 << 10;
const LOOK_MS = 50;
const RETRY_MS = 5_000;
/** A pageserver that takes longer gets no new project. */
const ANSWER_MS = 1_000;

export class Placements {
  readonly #c: PlacementContext;
  readonly #moves = new Map<ProjectUid, SerialQueue>();
  readonly #stop = new AbortController();
  #resuming: Promise<void> = Promise.resolve();

  constructor(context: PlacementContext) {
    this.#c = context;
  }

  start(): void {
    this.#resuming = this.#resume();
  }
  async stop(): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'the Manager is stopping'));
    await this.#resuming;
  }

  /** Where computes of the project go, and whoever manages its timelines. A new project gets its place here. */
  async serving(project: ProjectUid): Promise<FarPageserver> {
    const { far } = this.#c;
    const row = await this.#placed(project);
    return row === undefined ? first(far) : far.pageserverOf(row.serving);
  }

  /** Who has what there is of a project that is to go: it gets no place for that. */
  async holding(project: ProjectUid): Promise<FarPageserver> {
    const { db, far } = this.#c;
    const row = await store.placementOf(db, project);
    return row === undefined ? first(far) : far.pageserverOf(row.serving);
  }

  /** A new project goes to the least loaded of the pageservers that answer and whose disk is not full; while there is none, nowhere. */
  async #placed(project: ProjectUid): Promise<store.PlacementRow | undefined> {
    const { db, far, log } = this.#c;
    const known = await store.placementOf(db, project);
    if (known !== undefined) return known;
    const looks = await Promise.all(far.pageservers.map(look));
    const candidates = looks.filter((l) => l.refusal === undefined);
    if (candidates.length === 0)
      throw new LakebaseError('UNAVAILABLE', `no pageserver takes a new project: ${looks.map((l) => `${l.id} ${l.refusal}`).join(', ')}`);
    const row = await db.local.transaction((tx) => store.place(tx, project, candidates));
    if (row !== undefined) log.info({ project, pageserver: row.owner }, 'project placed');
    return row;
  }

  async attach(pageserver: string, body: AttachRequest): Promise<AttachAnswer> {
    const { db, far } = this.#c;
    return db.transaction(async (tx) => {
      const { rows, given, raised } = await store.attach(tx, pageserver, body.projects, first(far).id);
      this.#tellRaised(pageserver, raised);
      const timelines = await store.timelinesOf(tx, [...given]);
      const attached = rows.filter((r) => given.has(r.project_uid)).map((r) => this.#project(r, timelines));
      return { attached, ...standings(pageserver, body.projects, rows, () => false) };
    });
  }

  async validate(pageserver: string, body: ValidateRequest): Promise<ValidateAnswer> {
    const { rows, raised } = await this.#c.db.transaction((tx) => store.validate(tx, body.projects));
    this.#tellRaised(pageserver, raised);
    const sizes = body.projects.flatMap((p) => p.sizes ?? []);
    if (sizes.length > 0) await store.setSizes(this.#c.db.local, pageserver, sizes);
    // A Manager that was replaced elsewhere and does not know it must not call an old generation valid.
    await this.#c.db.confirmNewest();
    const generations = new Map(body.projects.map((p) => [p.project, p.generation]));
    const isValid = (r: store.PlacementRow): boolean => r.owner === pageserver && r.generation === generations.get(r.project_uid);
    return { valid: rows.filter(isValid).map((r) => r.project_uid), ...standings(pageserver, body.projects, rows, isValid) };
  }

  async published(project: ProjectUid): Promise<PublishedAnswer> {
    const timelines = await store.timelinesOf(this.#c.db, [project]);
    return { timelines: timelines.map((t) => ({ timeline: t.timeline_id, published: placeOf(t) })) };
  }

  #tellRaised(pageserver: string, projects: readonly ProjectUid[]): void {
    if (projects.length === 0) return;
    const message =
      `this catalog is older than what pageserver ${pageserver} has seen: the metadata database, or the object store that it was restored from, ` +
      'was put back to an earlier day. Generations go on above what was seen';
    this.#c.log.error({ pageserver, projects }, message);
  }

  #project(row: store.PlacementRow, timelines: readonly store.PublishedRow[]): AttachedProject {
    return {
      project: row.project_uid,
      generation: row.generation,
      timelines: timelines
        .filter((t) => t.project_uid === row.project_uid)
        .map((t) => ({
          timeline: t.timeline_id,
          published: placeOf(t),
          safekeepers: this.#c.far.safekeepers,
          active: t.active,
        })),
    };
  }

  /** Resolves when `target` serves the project. */
  move(project: ProjectUid, target: string): Promise<Placement> {
    let queue = this.#moves.get(project);
    if (queue === undefined) this.#moves.set(project, (queue = new SerialQueue()));
    return queue.run(() => this.#move(project, target));
  }

  async #move(project: ProjectUid, target: string): Promise<Placement> {
    const { db, far, log } = this.#c;
    const to = far.pageserverOf(target);
    let row = await this.#placed(project);
    if (row === undefined) throw new LakebaseError('NOT_FOUND', 'no such project');
    const from = row.serving;
    if (from === target && row.owner === target) return { project, pageserver: target, generation: row.generation };
    if (row.owner !== target) {
      // Now little is left for the new one to ingest. An old one that does not answer costs only that.
      const { client } = far.pageserverOf(from);
      await client
        .readiness(project)
        .then(() => client.upload(project, UPLOAD_MS))
        .catch((error: unknown) => log.warn({ project, pageserver: from, err: errorMessage(error) }, 'moving without a last upload'));
      row = await store.giveTo(db, project, target);
    }
    const began = performance.now();
    try {
      await this.#catchUp(to, row);
    } catch (error) {
      // The one that serves gets the project back.
      if (from !== target) await store.giveTo(db, project, from);
      throw new LakebaseError('UNAVAILABLE', `pageserver ${target} does not take the project over: ${errorMessage(error)}`, {
        cause: error,
      });
    }
    if (!(await store.setServing(db, project, target))) throw new LakebaseError('CONFLICT', 'another move came in between');
    await this.#tellComputes(project, to);
    if (from !== target)
      await ignoreNotFound(far.pageserverOf(from).client.letGo(project)).catch((error: unknown) =>
        log.warn(
          { project, pageserver: from, err: errorMessage(error) },
          'the old pageserver does not answer; it learns of the move when it asks',
        ),
      );
    log.info({ project, from, to: target, generation: row.generation, catchUpMs: Math.round(performance.now() - began) }, 'project moved');
    return { project, pageserver: target, generation: row.generation };
  }

  async #catchUp(to: FarPageserver, row: store.PlacementRow): Promise<void> {
    const timelines = await store.timelinesOf(this.#c.db, [row.project_uid]);
    const deadline = Date.now() + CATCH_UP_MS;
    let { lagBytes } = await to.client.takeOver(this.#project(row, timelines), CATCH_UP_MS);
    while (lagBytes === null || lagBytes > LAG_BYTES_MAX) {
      if (Date.now() > deadline) throw new LakebaseError('TIMEOUT', `it is still ${lagBytes ?? 'an unknown number of'} bytes behind`);
      await sleep(LOOK_MS, this.#stop.signal);
      ({ lagBytes } = await to.client.readiness(row.project_uid));
    }
  }

  /** Computes that cannot be told find out when the old pageserver ends their connections, and are told again. */
  async #tellComputes(project: ProjectUid, to: FarPageserver): Promise<void> {
    const { db, far, log } = this.#c;
    await Promise.all(
      (await store.computesOf(db, project)).map((id) =>
        ignoreNotFound(far.computeHost.change(id, { pageserver: to.address })).catch((error: unknown) =>
          log.warn({ project, compute: id, err: errorMessage(error) }, 'a compute was not told of the move'),
        ),
      ),
    );
  }

  /** Moves that a kill of the Manager cut short; a target that is gone is tried until it is back. */
  async #resume(): Promise<void> {
    while (!this.#stop.signal.aborted) {
      try {
        const rows = await store.unfinishedMoves(this.#c.db);
        for (const row of rows) await this.move(row.project_uid, row.owner);
        if (rows.length === 0) return;
      } catch (error) {
        if (!this.#stop.signal.aborted) this.#c.log.warn({ err: errorMessage(error) }, 'a move cannot be finished yet');
      }
      await sleep(RETRY_MS, this.#stop.signal).catch(() => {});
    }
  }
}

const first = (far: FarEnd): FarPageserver => far.pageservers[0] as FarPageserver;

/** May it take a new project, and how large is it? */
async function look({ id, client }: FarPageserver): Promise<NodeDisk & { readonly refusal: string | undefined }> {
  try {
    const { disk } = await client.health(ANSWER_MS);
    return { id, capacityBytes: disk?.capacityBytes, refusal: disk?.full === true ? 'has a full disk' : undefined };
  } catch {
    return { id, capacityBytes: undefined, refusal: 'does not answer' };
  }
}

function standings(
  pageserver: string,
  asked: readonly { readonly project: ProjectUid }[],
  rows: readonly store.PlacementRow[],
  isValid: (row: store.PlacementRow) => boolean,
): Pick<ValidateAnswer, 'superseded' | 'moved' | 'unknown'> {
  const known = new Map(rows.map((r) => [r.project_uid, r]));
  const others = rows.filter((r) => !isValid(r));
  return {
    superseded: others.filter((r) => r.serving === pageserver).map((r) => r.project_uid),
    moved: others.filter((r) => r.serving !== pageserver && r.owner !== pageserver).map((r) => r.project_uid),
    unknown: asked.map((a) => a.project).filter((project) => !known.has(project)),
  };
}
