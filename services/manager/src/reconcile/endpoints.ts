/** All endpoints: their controllers, the polling of the compute host, adoption after a restart, and stray computes.
 *  Invariant: nothing is started before the compute host has said what still runs. */
import { LakebaseError, type Logger, backoffDelay, errorMessage, isCode, sleep } from '@lakebase/base';
import type { ComputeStatus, RoleSecret } from '@lakebase/api';
import type { ProjectUid, TimelineId } from '@lakebase/ids';
import { type FarEnd, type PageserverAddress, ignoreNotFound, isTransient } from '../far-end.ts';
import type { Database } from '../metadata/database.ts';
import { publicError } from '../model/api-error.ts';
import type { CatalogKind } from '../store/catalog.ts';
import { allOpenOperations, completeOperation } from '../store/operations.ts';
import { type EndpointRow, endpointByUid, endpointsOfProject, listAllEndpoints, listEndpoints } from '../store/endpoints.ts';
import { CatalogSync } from './catalog-sync.ts';
import { type ControllerContext, EndpointController } from './endpoint-controller.ts';

const POLL_MS_IDLE = 5_000;
const POLL_MS_MAX = 1_000;
const POLL_MS_MIN = 100;

export interface EndpointsOptions {
  readonly db: Database;
  readonly far: FarEnd;
  readonly log: Logger;
  readonly whenReady: (project: ProjectUid) => Promise<void>;
  readonly requireKey: (project: ProjectUid) => void;
  readonly pageserver: (project: ProjectUid) => Promise<PageserverAddress>;
}

export class Endpoints {
  readonly #o: EndpointsOptions;
  readonly #controllers = new Map<string, EndpointController>();
  readonly #catalog: CatalogSync;
  readonly #context: ControllerContext;
  readonly #stop = new AbortController();
  readonly #adopted = Promise.withResolvers<void>();
  #loop: Promise<void> = Promise.resolve();
  #nudge: () => void = () => {};

  constructor(options: EndpointsOptions) {
    this.#o = options;
    this.#adopted.promise.catch(() => {});
    this.#catalog = new CatalogSync(options.db, options.far, options.log);
    this.#context = {
      db: options.db,
      far: options.far,
      log: options.log,
      requireKey: options.requireKey,
      pageserver: options.pageserver,
      whenReady: (row) => options.whenReady(row.project_uid),
      phaseChanged: () => this.#nudge(),
      started: (row) => void this.#syncSoon(row.timeline_id),
    };
  }

  start(): void {
    this.#loop = this.#run();
  }

  /** `suspend`: stop all computes, cleanly; else they run on and are adopted by the next Manager. */
  async stop(suspend: boolean): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'the Manager is stopping'));
    this.#adopted.reject(this.#stop.signal.reason);
    this.#nudge();
    if (suspend) await Promise.allSettled([...this.#controllers.values()].map((c) => c.suspend('stopping')));
    await this.#loop;
  }

  /** Undefined until the endpoint was first needed in this process. */
  peek(uid: string): EndpointController | undefined {
    return this.#controllers.get(uid);
  }

  get activeCount(): number {
    let n = 0;
    for (const c of this.#controllers.values()) if (c.phase === 'ACTIVE') n++;
    return n;
  }

  /** NOT_FOUND: there is no such role. UNAVAILABLE: the compute is not there to be asked, so whoever can waits for the next one. */
  async roleOf(computeId: string, role: string): Promise<RoleSecret> {
    try {
      return await this.#o.far.computeHost.role(computeId, role);
    } catch (error) {
      if (isCode(error, 'CONFLICT')) throw new LakebaseError('UNAVAILABLE', errorMessage(error), { cause: error });
      throw error;
    }
  }

  async controller(uid: string): Promise<EndpointController> {
    if (this.#stop.signal.aborted) throw this.#stop.signal.reason;
    await this.#adopted.promise;
    const known = this.#controllers.get(uid);
    if (known !== undefined) return known;
    const row = await endpointByUid(this.#o.db, uid);
    if (row === undefined) throw new LakebaseError('NOT_FOUND', 'no such endpoint');
    return this.#controllerFor(row);
  }

  async wake(uid: string): ReturnType<EndpointController['wake']> {
    return (await this.controller(uid)).wake();
  }

  async suspend(uid: string): Promise<void> {
    await (await this.controller(uid)).suspend('asked');
  }

  /** For a project that goes away or whose key may not be used: immediate, no checkpoint. */
  async stopProject(project: ProjectUid): Promise<void> {
    for (const row of await endpointsOfProject(this.#o.db, project)) {
      await (await this.controller(row.uid)).suspend('asked', 'immediate');
      this.#controllers.delete(row.uid);
    }
  }

  /** After an API change of a role or database: on a running compute now, else at the next start.
   *  `needsCompute`: drops, which only a server can judge: the endpoint is woken for them. */
  async catalogChanged(timeline: TimelineId, kind: CatalogKind, id: string, needsCompute: boolean): Promise<void> {
    const row = (await listEndpoints(this.#o.db, timeline))[0];
    if (row === undefined) return;
    const controller = await this.controller(row.uid);
    if (!needsCompute && controller.phase === 'IDLE') {
      await this.#catalog.defer(timeline, kind, id);
      // A start that began meanwhile may have read the catalog before the change: it syncs again when it is up.
      return;
    }
    const woken = await controller.wake();
    await this.#catalog.sync(timeline, woken.computeId);
  }

  /** The compute settings of a running endpoint follow its row. */
  async settingsChanged(row: EndpointRow): Promise<void> {
    const running = (await this.controller(row.uid)).running;
    if (running !== undefined) await this.#o.far.computeHost.change(running.computeId, { settings: row.pg_settings });
  }

  #controllerFor(row: EndpointRow): EndpointController {
    const made = this.#controllers.get(row.uid) ?? new EndpointController(this.#context, row);
    this.#controllers.set(row.uid, made);
    return made;
  }

  async #run(): Promise<void> {
    await this.#adopt();
    while (!this.#stop.signal.aborted) {
      await this.#wait();
      if (this.#stop.signal.aborted) return;
      try {
        await this.#look();
      } catch (error) {
        if (!isTransient(error)) this.#o.log.warn({ err: errorMessage(error) }, 'looking at the compute host failed');
      }
    }
  }

  async #adopt(): Promise<void> {
    for (let attempt = 0; !this.#stop.signal.aborted; attempt++) {
      try {
        const { computes } = await this.#o.far.computeHost.list();
        const byId = new Map(computes.map((c) => [c.computeId, c]));
        for (const row of await listAllEndpoints(this.#o.db)) {
          if (row.compute_id === null) continue;
          const controller = this.#controllerFor(row);
          await controller.adopt(row, byId.get(row.compute_id));
        }
        this.#adopted.resolve();
        await this.#stopStrays(computes);
        await this.#resumeOperations();
        return;
      } catch (error) {
        this.#o.log.warn({ attempt, err: errorMessage(error) }, 'cannot see yet which computes run');
        await sleep(backoffDelay(attempt, { maxMs: 2_000 }), this.#stop.signal).catch(() => {});
      }
    }
  }

  async #look(): Promise<void> {
    const lookedAt = Date.now();
    const { computes } = await this.#o.far.computeHost.list();
    const byId = new Map(computes.map((c) => [c.computeId, c]));
    for (const controller of this.#controllers.values())
      controller.observe(controller.computeId === undefined ? undefined : byId.get(controller.computeId), lookedAt);
    await this.#stopStrays(computes);
  }

  /** Computes nobody wants: of a start whose caller was killed, or of a deleted endpoint. */
  async #stopStrays(computes: readonly ComputeStatus[]): Promise<void> {
    const alive = computes.filter((c) => c.state === 'RUNNING' || c.state === 'STARTING');
    const wanted = new Set([...this.#controllers.values()].map((c) => c.computeId));
    const strays = alive.filter((c) => !wanted.has(c.computeId));
    if (strays.length === 0) return;
    const recorded = new Set((await listAllEndpoints(this.#o.db)).map((row) => row.compute_id));
    for (const stray of strays) {
      if (recorded.has(stray.computeId)) continue;
      this.#o.log.warn({ compute: stray.computeId, endpoint: stray.endpointId }, 'stopping a compute nobody wants');
      await ignoreNotFound(this.#o.far.computeHost.stop(stray.computeId, 'immediate'));
    }
  }

  async #syncSoon(timeline: TimelineId): Promise<void> {
    try {
      const row = (await listEndpoints(this.#o.db, timeline))[0];
      const computeId = row === undefined ? undefined : this.#controllers.get(row.uid)?.running?.computeId;
      if (computeId !== undefined) await this.#catalog.sync(timeline, computeId);
    } catch (error) {
      this.#o.log.warn({ timeline, err: errorMessage(error) }, 'roles and databases are not carried out yet');
    }
  }

  /** Operations a killed Manager left open. Catalog drops and endpoint starts go on; finished ones are closed. */
  async #resumeOperations(): Promise<void> {
    for (const operation of await allOpenOperations(this.#o.db)) {
      const [kind, rest = ''] = operation.target.split(':', 2);
      if (kind === 'role' || kind === 'database') {
        const [timeline, id] = rest.split('/', 2);
        const drop = operation.kind.startsWith('DELETE');
        this.catalogChanged(timeline as TimelineId, kind, id as string, drop).catch((error) =>
          this.#o.log.warn({ operation: operation.id, err: errorMessage(error) }, 'operation is still open'),
        );
      } else if (kind === 'endpoint') void this.#finishEndpointOperation(operation.id, operation.kind, rest);
    }
  }

  async #finishEndpointOperation(id: string, kind: string, uid: string): Promise<void> {
    await this.runEndpointOperation(id, async () => {
      if (kind === 'START_ENDPOINT') await this.wake(uid);
      else if (kind === 'SUSPEND_ENDPOINT') await this.suspend(uid);
      else {
        const row = await endpointByUid(this.#o.db, uid);
        if (row?.disabled === true) await this.suspend(uid);
        else if (row !== undefined) await this.settingsChanged(row);
      }
    });
  }

  /** Runs the work of an endpoint operation and records how it went. */
  async runEndpointOperation(id: string, work: () => Promise<void>): Promise<void> {
    try {
      await work();
      await completeOperation(this.#o.db.local, id, { response: {} });
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      const known = error instanceof LakebaseError ? error : new LakebaseError('INTERNAL', errorMessage(error));
      await completeOperation(this.#o.db.local, id, { error: publicError(known) }).catch(() => {});
    }
  }

  /** Until the next look: a fraction of the shortest timeout while computes run, long otherwise, shortened by changes of phase. */
  async #wait(): Promise<void> {
    for (let waited = 0; !this.#stop.signal.aborted; ) {
      const left = this.#pollMs() - waited;
      if (left <= 0) return;
      const began = Date.now();
      const cut = new AbortController();
      this.#nudge = () => cut.abort(new LakebaseError('CLOSED', 'phase changed'));
      await sleep(left, AbortSignal.any([cut.signal, this.#stop.signal])).catch(() => {});
      this.#nudge = () => {};
      waited += Date.now() - began;
    }
  }

  #pollMs(): number {
    let ms = POLL_MS_IDLE;
    for (const c of this.#controllers.values())
      if (c.phase === 'ACTIVE') ms = Math.min(ms, POLL_MS_MAX, Math.max(POLL_MS_MIN, (c.suspendAfterMs ?? POLL_MS_IDLE * 8) / 8));
    return ms;
  }
}
