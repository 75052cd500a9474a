/** What this pageserver may write, by project: generations asked from the Manager, kept as long as the process lives, confirmed again and again
 *  (docs/protocols/generations.md). Calls of many projects travel together.
 *  Invariants: a validation that {@link Generations.validate} waits for began after it was called; a generation of another process of this
 *  pageserver is never taken up again; without an answer of the Manager nothing becomes allowed and nothing is taken away. */
import {
  type AttachAnswer,
  type AttachRequest,
  type AttachedProject,
  type IndexPlace,
  NO_INDEX,
  type PublishedAnswer,
  type TimelineSize,
  type ValidateAnswer,
  type ValidateRequest,
} from '@lakebase/api';
import { LakebaseError, type Logger, backoffDelay, errorMessage, sleep } from '@lakebase/base';
import type { ProjectUid, TimelineId } from '@lakebase/ids';

/** The Manager, or a stand-in in tests. */
export interface PlacementCalls {
  attach(body: AttachRequest): Promise<AttachAnswer>;
  validate(body: ValidateRequest): Promise<ValidateAnswer>;
  published(project: ProjectUid): Promise<PublishedAnswer>;
}

/** `waiting`: the Manager has not answered yet; `superseded`: another pageserver has a newer generation, reads stay here; `moved`: it serves them. */
export type Standing = 'waiting' | 'valid' | 'superseded' | 'moved' | 'unknown';

interface Project {
  standing: Standing;
  attached: AttachedProject | undefined;
  seen: number;
  attaching: Promise<AttachedProject> | undefined;
  /** Indexes that were put since the last validation. */
  readonly published: Map<TimelineId, IndexPlace>;
  /** Timelines whose index this process has put. */
  readonly ever: Set<TimelineId>;
}

interface Waiting<T> {
  readonly project: ProjectUid;
  readonly resolve: (value: T) => void;
  readonly reject: (error: unknown) => void;
}

/** Requests that come within this time share a call. */
const GATHER_MS = 5;
const PROJECTS_PER_CALL = 500;
const RETRY = { baseMs: 100, maxMs: 5_000 };

export class Generations {
  readonly #calls: PlacementCalls;
  readonly #log: Logger;
  readonly #everyMs: number;
  readonly #projects = new Map<ProjectUid, Project>();
  readonly #stop = new AbortController();
  #attaching: Waiting<AttachedProject>[] = [];
  #validating: Waiting<void>[] = [];
  #validation: Promise<void> | undefined;
  #loop: Promise<void> = Promise.resolve();
  /** Called when the project's standing has changed. */
  onChange: (project: ProjectUid, standing: Standing) => void = () => {};
  /** Of all timelines in memory; told with every periodic confirmation. */
  sizes: () => ReadonlyMap<ProjectUid, readonly TimelineSize[]> = () => new Map();

  constructor(calls: PlacementCalls, log: Logger, everyMs = 5_000) {
    this.#calls = calls;
    this.#log = log;
    this.#everyMs = everyMs;
  }

  start(): void {
    this.#loop = this.#periodically();
  }

  async stop(): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'the pageserver is shutting down'));
    for (const w of [...this.#attaching.splice(0), ...this.#validating.splice(0)]) w.reject(this.#stop.signal.reason);
    await this.#loop;
  }

  standing(project: string): Standing {
    return this.#projects.get(project as ProjectUid)?.standing ?? 'waiting';
  }

  /** What the Manager gave, while it is valid. */
  attached(project: string): AttachedProject | undefined {
    const known = this.#projects.get(project as ProjectUid);
    return known?.standing === 'valid' ? known.attached : undefined;
  }

  /** The highest generation of the project that was seen anywhere. */
  saw(project: ProjectUid, generation: number): void {
    const known = this.#project(project);
    known.seen = Math.max(known.seen, generation);
  }

  /** A generation for this process; the one it has, while it is valid. One try: UNAVAILABLE when the Manager does not answer, FENCED when the project is elsewhere,
   *  NOT_FOUND when the Manager does not know it. */
  attach(project: ProjectUid): Promise<AttachedProject> {
    const known = this.#project(project);
    if (known.standing === 'valid' && known.attached !== undefined) return Promise.resolve(known.attached);
    known.attaching ??= this.#gather(this.#attaching, project, () => this.#attachAll()).finally(() => {
      known.attaching = undefined;
    });
    return known.attaching;
  }

  /** The same, repeated until the Manager answers; ends at {@link stop}. */
  async attachEventually(project: ProjectUid, signal: AbortSignal): Promise<AttachedProject> {
    for (let attempt = 0; ; attempt++) {
      try {
        return await this.attach(project);
      } catch (error) {
        if (this.#stop.signal.aborted || signal.aborted) throw error;
        if (attempt === 0) this.#log.info({ project, err: errorMessage(error) }, 'no generation yet; uploads wait');
      }
      await sleep(backoffDelay(attempt, RETRY), AbortSignal.any([signal, this.#stop.signal]));
    }
  }

  /** A generation was taken over from the Manager's own call. */
  adopt(attached: AttachedProject): void {
    const known = this.#project(attached.project);
    if (attached.generation < known.seen) throw new LakebaseError('FENCED', `generation ${attached.generation} is not the newest`);
    known.attached = attached;
    known.seen = attached.generation;
    this.#set(attached.project, 'valid');
  }

  /** The project left; what was known of it is of no use. */
  release(project: ProjectUid): void {
    this.#project(project).attached = undefined;
    this.#set(project, 'moved');
  }

  /** A generation that was found in use by somebody: the next attach gets a higher one. */
  refuse(project: ProjectUid, seen: number): void {
    this.saw(project, seen);
    const known = this.#project(project);
    known.attached = undefined;
    this.#set(project, 'waiting');
  }

  /** The index is in the store. */
  published(project: ProjectUid, timeline: TimelineId, place: IndexPlace): void {
    const known = this.#project(project);
    known.published.set(timeline, place);
    known.ever.add(timeline);
  }
  /** Of the newest index that the Manager knows to have been put, asked now. */
  async newestIndex(project: ProjectUid, timeline: TimelineId): Promise<IndexPlace> {
    const { timelines } = await this.#calls.published(project);
    return timelines.find((t) => t.timeline === timeline)?.published ?? NO_INDEX;
  }
  /** An index of the timeline under a generation of this process is our own. */
  hasPublished(project: ProjectUid, timeline: TimelineId): boolean {
    return this.#project(project).ever.has(timeline);
  }

  /** Resolves when the Manager has said, to a question asked after this call, that the generation is the newest. Rejects with FENCED when it is
   *  not; waits out a Manager that does not answer. */
  validate(project: ProjectUid): Promise<void> {
    return this.#gather(this.#validating, project, () => void this.#validateWaiting());
  }

  #project(project: ProjectUid): Project {
    let known = this.#projects.get(project);
    if (known === undefined) {
      known = { standing: 'waiting', attached: undefined, seen: 0, attaching: undefined, published: new Map(), ever: new Set() };
      this.#projects.set(project, known);
    }
    return known;
  }

  #set(project: ProjectUid, standing: Standing): void {
    const known = this.#project(project);
    if (known.standing === standing) return;
    known.standing = standing;
    this.onChange(project, standing);
  }

  #gather<T>(queue: Waiting<T>[], project: ProjectUid, send: () => void): Promise<T> {
    if (this.#stop.signal.aborted) return Promise.reject(this.#stop.signal.reason as Error);
    return new Promise((resolve, reject) => {
      queue.push({ project, resolve, reject });
      if (queue.length === 1) setTimeout(send, GATHER_MS);
    });
  }

  async #attachAll(): Promise<void> {
    const waiting = this.#attaching.splice(0);
    for (let i = 0; i < waiting.length; i += PROJECTS_PER_CALL) {
      const some = waiting.slice(i, i + PROJECTS_PER_CALL);
      try {
        const answer = await this.#calls.attach({
          projects: some.map(({ project }) => ({ project, seen: this.#project(project).seen })),
        });
        this.#settle(some, answer);
      } catch (error) {
        for (const w of some) w.reject(error);
      }
    }
  }

  #settle(waiting: readonly Waiting<AttachedProject>[], answer: AttachAnswer): void {
    const attached = new Map(answer.attached.map((a) => [a.project, a]));
    const moved = new Set(answer.moved);
    const superseded = new Set(answer.superseded);
    for (const { project, resolve, reject } of waiting) {
      const mine = attached.get(project);
      const known = this.#project(project);
      if (mine !== undefined && mine.generation > known.seen) {
        known.attached = mine;
        known.seen = mine.generation;
        this.#set(project, 'valid');
        resolve(mine);
        continue;
      }
      known.attached = undefined;
      this.#set(project, moved.has(project) ? 'moved' : superseded.has(project) ? 'superseded' : 'unknown');
      if (moved.has(project) || superseded.has(project)) reject(fenced(project));
      else if (mine !== undefined) reject(new LakebaseError('UNAVAILABLE', `generation ${mine.generation} was given out before; again`));
      else reject(new LakebaseError('NOT_FOUND', `the Manager does not know project ${project}`));
    }
  }

  /** One round at a time; who comes while one is on the way waits for the next. */
  async #validateWaiting(): Promise<void> {
    while (this.#validation !== undefined) await this.#validation;
    if (this.#validating.length === 0) return;
    this.#validation = this.#validateRound(this.#validating.splice(0)).finally(() => {
      this.#validation = undefined;
    });
    await this.#validation;
  }

  async #validateRound(waiting: readonly Waiting<void>[]): Promise<void> {
    const projects = [...new Set(waiting.map((w) => w.project))];
    for (let attempt = 0; ; attempt++) {
      try {
        await this.#ask(projects);
        break;
      } catch (error) {
        if (attempt === 0) this.#log.warn({ err: errorMessage(error) }, 'the Manager does not confirm generations; asking again');
        await sleep(backoffDelay(attempt, RETRY), this.#stop.signal).catch(() => {});
        if (!this.#stop.signal.aborted) continue;
        for (const w of waiting) w.reject(this.#stop.signal.reason);
        return;
      }
    }
    for (const { project, resolve, reject } of waiting)
      if (this.standing(project) === 'valid') resolve();
      else reject(fenced(project));
  }

  async #ask(projects: readonly ProjectUid[], sizes?: ReadonlyMap<ProjectUid, readonly TimelineSize[]>): Promise<void> {
    const asked = projects.flatMap((project) => {
      const { attached, published } = this.#project(project);
      if (attached === undefined) return [];
      const { generation } = attached;
      // What was put under another one is not of this one's history.
      const put = [...published].filter(([, place]) => place.generation === generation);
      const known = sizes?.get(project);
      const told = put.map(([timeline, { version }]) => ({ timeline, version }));
      return [{ project, generation, published: told, ...(known === undefined ? {} : { sizes: known }) }];
    });
    for (let i = 0; i < asked.length; i += PROJECTS_PER_CALL) {
      const some = asked.slice(i, i + PROJECTS_PER_CALL);
      const answer = await this.#calls.validate({ projects: some });
      const valid = new Set(answer.valid);
      const moved = new Set(answer.moved);
      const superseded = new Set(answer.superseded);
      for (const { project, generation, published } of some) {
        const known = this.#project(project);
        // Another generation came meanwhile: the answer is not about it.
        if (known.attached?.generation !== generation) continue;
        // A later one may have been put while this was on its way.
        if (valid.has(project))
          for (const { timeline, version } of published) {
            if (known.published.get(timeline)?.version === version) known.published.delete(timeline);
          }
        else {
          // An unknown project keeps its generation: an old metadata database must not stop what runs. It confirms nothing, though.
          known.attached = undefined;
          this.#log.warn({ project, generation }, 'this generation is not the newest any more: no more uploads');
        }
        this.#set(
          project,
          valid.has(project) ? 'valid' : moved.has(project) ? 'moved' : superseded.has(project) ? 'superseded' : 'unknown',
        );
      }
    }
  }

  async #periodically(): Promise<void> {
    for (;;) {
      await sleep(this.#everyMs, this.#stop.signal).catch(() => {});
      if (this.#stop.signal.aborted) return;
      try {
        const known = [...this.#projects].filter(([, p]) => p.attached !== undefined).map(([project]) => project);
        if (known.length > 0) await this.#ask(known, this.sizes());
        // It may come back, or leave for good.
        for (const [project, { standing }] of this.#projects)
          if (standing === 'superseded' || standing === 'unknown') await this.attach(project).catch(() => {});
      } catch {
        /* the next time */
      }
    }
  }
}

const fenced = (project: ProjectUid): LakebaseError =>
  new LakebaseError('FENCED', `another pageserver has a newer generation of project ${project}`);
