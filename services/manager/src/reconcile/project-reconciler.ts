/** Runs {@link reconcileProject} for every project that is not settled, one run per project, again and again until it is.
 *  Started at every start of the Manager, so whatever a kill interrupted goes on. */
import { LakebaseError, backoffDelay, errorMessage, isCode, sleep, withDeadline } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import type { FarEnd } from '../far-end.ts';
import { publicError } from '../model/api-error.ts';
import { completeTarget, insertOperation, pruneOperations } from '../store/operations.ts';
import { markProjectDeleting, projectByUid, setProjectError, unfinishedProjects } from '../store/projects.ts';
import { pruneTokens } from '../store/tokens.ts';
import { Membership } from './membership.ts';
import { type StorageContext, announceMembers, reconcileMembers, reconcileProject } from './storage.ts';

const MEMBERS_EVERY_MS = 5_000;
const PRUNE_EVERY_MS = 3_600_000;

export class ProjectReconciler {
  readonly #context: StorageContext;
  readonly #runs = new Map<ProjectUid, Promise<void>>();
  readonly #again = new Set<ProjectUid>();
  readonly #stop = new AbortController();
  #background: Promise<unknown> = Promise.resolve();
  readonly membership: Membership;

  constructor(context: StorageContext) {
    this.#context = context;
    this.membership = new Membership(context);
  }

  get far(): FarEnd {
    return this.#context.far;
  }

  async start(): Promise<void> {
    for (const { uid } of await unfinishedProjects(this.#context.db)) if (!this.#runs.has(uid)) this.kick(uid);
    this.#background = this.#rounds();
  }

  async stop(): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'the Manager is stopping'));
    await Promise.allSettled([...this.#runs.values(), this.#background]);
  }

  /** Settle this project now. A project changed while its run is on is run once more afterwards. */
  kick(uid: ProjectUid): void {
    if (this.#stop.signal.aborted) return;
    if (this.#runs.has(uid)) {
      this.#again.add(uid);
      return;
    }
    const run = this.#run(uid)
      .catch((error) => this.#context.log.error({ project: uid, err: errorMessage(error) }, 'reconciling a project stopped'))
      .finally(() => {
        this.#runs.delete(uid);
        if (this.#again.delete(uid)) this.kick(uid);
      });
    this.#runs.set(uid, run);
  }

  /** Resolves when the project is READY; rejects with the reason it is not. */
  async whenReady(uid: ProjectUid, timeoutMs: number): Promise<void> {
    const project = await projectByUid(this.#context.db, uid);
    if (project?.state === 'READY') return;
    if (project === undefined || project.state === 'DELETING') throw new LakebaseError('NOT_FOUND', 'the project is deleted');
    this.kick(uid);
    try {
      await withDeadline(this.#runs.get(uid) ?? Promise.resolve(), timeoutMs, `creating project ${project.project_id}`);
    } catch (error) {
      const reason = (await projectByUid(this.#context.db, uid))?.error ?? null;
      throw reason === null ? error : new LakebaseError('UNAVAILABLE', `project ${project.project_id} is still being created: ${reason}`);
    }
    const after = await projectByUid(this.#context.db, uid);
    if (after?.state !== 'READY')
      throw new LakebaseError(
        'UNAVAILABLE',
        `project ${project.project_id} could not be created${typeof after?.error === 'string' ? `: ${after.error}` : ''}`,
      );
  }

  async #run(uid: ProjectUid): Promise<void> {
    for (let attempt = 0; ; attempt++) {
      try {
        const result = await reconcileProject(this.#context, uid);
        this.#context.log.info({ project: uid, result, attempts: attempt + 1 }, 'project settled');
        return;
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        this.#context.log.warn({ project: uid, attempt, err: errorMessage(error) }, 'project not settled yet');
        if (isHopeless(error)) await this.#undo(uid, error as LakebaseError);
        else await setProjectError(this.#context.db.local, uid, errorMessage(error)).catch(() => {});
      }
      try {
        await sleep(backoffDelay(attempt), this.#stop.signal);
      } catch {
        return;
      }
    }
  }

  /** The request itself cannot be carried out: the operation fails and what was made so far is removed. */
  async #undo(uid: ProjectUid, error: LakebaseError): Promise<void> {
    await this.#context.db.transaction(async (tx) => {
      const project = await projectByUid(tx, uid);
      if (project?.state !== 'CREATING') return;
      await completeTarget(tx, `project:${uid}`, { error: publicError(error) });
      await markProjectDeleting(tx, uid);
      await insertOperation(tx, {
        workspace: project.workspace_id,
        resource: `projects/${project.project_id}`,
        kind: 'DELETE_PROJECT',
        target: `project:${uid}`,
      });
    });
  }

  async #rounds(): Promise<void> {
    const { db, log } = this.#context;
    for (let sincePrune = PRUNE_EVERY_MS; ; sincePrune += MEMBERS_EVERY_MS) {
      try {
        await reconcileMembers(this.#context);
        await this.membership.round(this.#stop.signal);
        await announceMembers(this.#context);
        if (sincePrune >= PRUNE_EVERY_MS) {
          sincePrune = 0;
          await pruneTokens(db.local);
          await pruneOperations(db.local);
        }
      } catch (error) {
        log.warn({ err: errorMessage(error) }, 'background round failed');
      }
      try {
        await sleep(MEMBERS_EVERY_MS, this.#stop.signal);
      } catch {
        return;
      }
    }
  }
}

/** The far end understood and refused: asking again the same way cannot help. */
const isHopeless = (error: unknown): boolean =>
  isCode(error, 'INVALID_ARGUMENT') || isCode(error, 'UNSUPPORTED') || isCode(error, 'INVALID_ID') || isCode(error, 'INVALID_LSN');
