/** Runs the scrubs of one service: one at a time, on demand and on a schedule, at a bounded rate; keeps what the last ones found.
 *  What is scrubbed is the service's affair ({@link ScrubRun}). Invariants: a scrub on demand waits for none: it is refused while one runs, but for one
 *  of the schedule, which gives way; when the last one on schedule ended survives a restart; scheduled scrubs repair from good copies and delete
 *  nothing. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import type { ScrubFinding, ScrubRequest, ScrubStatus } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage, sleep } from '@lakebase/base';
import type { FastifyInstance } from 'fastify';
import type { Registry } from 'prom-client';
import { Type } from 'typebox';
import { parseConfig } from './config.ts';
import { Counter, Gauge } from './metrics.ts';

/** Spread into the configuration of a service that scrubs. */
export const scrubConfig = {
  /** Time between two scrubs on schedule; 0: only on demand. */
  scrubIntervalMs: Type.Integer({ minimum: 0, default: 7 * 24 * 3_600_000 }),
  /** What a scrub reads in a second, at most. */
  scrubBytesPerSecond: Type.Integer({ minimum: 1_024, default: 32 << 20 }),
  /** An object that nothing names is an orphan when it is older than this. */
  scrubOrphanAgeMs: Type.Integer({ minimum: 0, default: 24 * 3_600_000 }),
};
export interface ScrubConfig {
  readonly scrubIntervalMs: number;
  readonly scrubBytesPerSecond: number;
  readonly scrubOrphanAgeMs: number;
}

/** What a run is given. */
export interface ScrubJob {
  readonly project: string | null;
  readonly repair: boolean;
  readonly deleteOrphans: boolean;
  readonly knownProjects: readonly string[] | null;
  readonly orphanAgeMs: number;
  readonly signal: AbortSignal;
  /** Bytes were read: waits as long as the rate asks for. */
  spent(bytes: number): Promise<void>;
  object(): void;
  found(finding: ScrubFinding): void;
  timelines(done: number, total: number): void;
  skipped(timeline: string): void;
}
export type ScrubRun = (job: ScrubJob) => Promise<void>;

export interface ScrubJobsOptions {
  readonly service: string;
  readonly config: ScrubConfig;
  /** Remembers when the last one on schedule ended. */
  readonly stateFile: string;
  readonly log: Logger;
  readonly run: ScrubRun;
}

const FINDINGS_MAX = 1_000;
const KEPT = 8;
const SCHEDULED = 'schedule';
/** A service that just started has better things to do. */
const FIRST_AFTER_MS = 60_000;
const LOOK_EVERY_MS = 600_000;

interface Running {
  status: { -readonly [K in keyof ScrubStatus]: ScrubStatus[K] } & { findings: ScrubFinding[]; skipped: string[] };
  readonly abort: AbortController;
  readonly scheduled: boolean;
  done: Promise<void>;
}

export class ScrubJobs {
  readonly #o: ScrubJobsOptions;
  /** Newest last. */
  readonly #jobs: Running[] = [];
  #timer: NodeJS.Timeout | undefined;
  #closed = false;
  readonly #totals = { objects: 0, bytes: 0, runs: 0, findings: new Map<string, number>() };

  constructor(options: ScrubJobsOptions) {
    this.#o = options;
  }

  startSchedule(): void {
    if (this.#o.config.scrubIntervalMs > 0 && !this.#closed) this.#arm(FIRST_AFTER_MS);
  }

  #arm(ms: number): void {
    this.#timer = setTimeout(() => {
      const due = this.#lastScheduled() + this.#o.config.scrubIntervalMs - Date.now();
      if (due <= 0 && this.#running() === undefined)
        this.#begin({ id: `${SCHEDULED}-${Date.now()}`, project: null, repair: true, knownProjects: null, bytesPerSecond: null }, true);
      this.#arm(Math.min(LOOK_EVERY_MS, Math.max(1_000, due)));
    }, ms);
    this.#timer.unref();
  }

  #lastScheduled(): number {
    try {
      const { finishedAt } = JSON.parse(readFileSync(this.#o.stateFile, 'utf8')) as { finishedAt: number };
      // A clock that was set back must not put the next one off for ever.
      if (Number.isSafeInteger(finishedAt) && finishedAt <= Date.now()) return finishedAt;
    } catch {
      /* never, or unreadable: the interval begins now */
    }
    this.#remember();
    return Date.now();
  }
  #remember(): void {
    try {
      mkdirSync(dirname(this.#o.stateFile), { recursive: true });
      writeFileSync(`${this.#o.stateFile}.tmp`, JSON.stringify({ finishedAt: Date.now() }));
      renameSync(`${this.#o.stateFile}.tmp`, this.#o.stateFile);
    } catch (error) {
      this.#o.log.warn({ err: errorMessage(error) }, 'cannot remember when the last scrub ended');
    }
  }

  #running(): Running | undefined {
    return this.#jobs.findLast((j) => j.status.state === 'RUNNING');
  }

  async start(request: ScrubRequest): Promise<ScrubStatus> {
    const same = this.#jobs.find((j) => j.status.id === request.id);
    if (same !== undefined) return same.status;
    const running = this.#running();
    if (running !== undefined) {
      if (!running.scheduled)
        throw new LakebaseError('CONFLICT', `${this.#o.service} runs scrub ${running.status.id}; wait for it or end it`);
      running.abort.abort(new LakebaseError('CLOSED', 'gave way to a scrub on demand'));
      await running.done;
    }
    if (this.#closed) throw new LakebaseError('CLOSED', 'the service is shutting down');
    return this.#begin(request, false);
  }

  status(id: string): ScrubStatus {
    const job = this.#jobs.find((j) => j.status.id === id);
    if (job === undefined)
      throw new LakebaseError('NOT_FOUND', `${this.#o.service} knows no scrub '${id.slice(0, 80)}'; it may have been restarted since`);
    return job.status;
  }

  async end(id: string): Promise<void> {
    const job = this.#jobs.find((j) => j.status.id === id);
    job?.abort.abort(new LakebaseError('CLOSED', 'ended on request'));
    await job?.done;
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#timer);
    for (const job of this.#jobs) job.abort.abort(new LakebaseError('CLOSED', 'the service is shutting down'));
    await Promise.all(this.#jobs.map((j) => j.done));
  }

  #begin(request: ScrubRequest, scheduled: boolean): ScrubStatus {
    const status: Running['status'] = {
      id: request.id,
      service: this.#o.service,
      state: 'RUNNING',
      error: null,
      startedAt: new Date().toISOString(),
      finishedAt: null,
      timelines: { done: 0, total: 0 },
      skipped: [],
      objects: 0,
      bytes: 0,
      findings: [],
      findingsOmitted: 0,
      left: 0,
    };
    const job: Running = { status, abort: new AbortController(), scheduled, done: Promise.resolve() };
    this.#jobs.push(job);
    if (this.#jobs.length > KEPT) this.#jobs.shift();
    job.done = this.#run(job, request);
    return status;
  }

  async #run(job: Running, request: ScrubRequest): Promise<void> {
    const { status, abort, scheduled } = job;
    const log = this.#o.log.child({ scrub: status.id });
    const pace = newPace(request.bytesPerSecond ?? this.#o.config.scrubBytesPerSecond, abort.signal);
    try {
      await this.#o.run({
        project: request.project,
        repair: request.repair,
        deleteOrphans: request.repair && !scheduled,
        knownProjects: request.knownProjects,
        orphanAgeMs: this.#o.config.scrubOrphanAgeMs,
        signal: abort.signal,
        spent: (bytes) => {
          status.bytes += bytes;
          this.#totals.bytes += bytes;
          return pace(bytes);
        },
        object: () => {
          status.objects++;
          this.#totals.objects++;
        },
        found: (finding) => {
          if (status.findings.length < FINDINGS_MAX) status.findings.push(finding);
          else status.findingsOmitted++;
          if (finding.outcome === 'left') status.left++;
          this.#totals.findings.set(finding.kind, (this.#totals.findings.get(finding.kind) ?? 0) + 1);
          log.warn({ ...finding }, `scrub found: ${finding.kind}`);
        },
        timelines: (done, total) => {
          status.timelines = { done, total };
        },
        skipped: (timeline) => void status.skipped.push(timeline),
      });
      status.state = 'DONE';
      if (scheduled) this.#remember();
    } catch (error) {
      status.state = 'FAILED';
      status.error = errorMessage(abort.signal.aborted ? abort.signal.reason : error);
    }
    status.finishedAt = new Date().toISOString();
    this.#totals.runs++;
    const { state, objects, bytes, left } = status;
    log.info({ state, objects, bytes, findings: status.findings.length + status.findingsOmitted, left, err: status.error }, 'scrub ended');
  }

  registerMetrics(registry: Registry): void {
    const totals = this.#totals;
    const counter = (name: string, help: string, value: () => number): void => {
      const metric: Counter = new Counter({ name, help, registers: [registry], collect: () => (metric.reset(), metric.inc(value())) });
    };
    counter('lakebase_scrub_objects_total', 'Objects and files that scrubs read whole', () => totals.objects);
    counter('lakebase_scrub_bytes_total', 'Bytes that scrubs read', () => totals.bytes);
    const findings: Counter<'kind'> = new Counter({
      name: 'lakebase_scrub_findings_total',
      help: 'What scrubs found, repaired or not',
      labelNames: ['kind'],
      registers: [registry],
      collect: () => {
        findings.reset();
        for (const [kind, n] of totals.findings) findings.inc({ kind }, n);
      },
    });
    const left: Gauge = new Gauge({
      name: 'lakebase_scrub_left',
      help: 'Findings of the last scrub that ended which are as they were',
      registers: [registry],
      collect: () => left.set(this.#jobs.findLast((j) => j.status.state !== 'RUNNING')?.status.left ?? 0),
    });
  }

  addRoutes(app: FastifyInstance): void {
    app.post('/v1/scrubs', async (request) => this.start(checked(request.body)));
    app.get('/v1/scrubs/:id', async (request) => this.status((request.params as { id: string }).id));
    app.delete('/v1/scrubs/:id', async (request, reply) => {
      await this.end((request.params as { id: string }).id);
      return reply.code(204).send();
    });
  }
}

const hexId = Type.String({ pattern: '^[0-9a-f]{32}$' });
const requestSchema = Type.Object(
  {
    id: Type.String({ pattern: '^[A-Za-z0-9-]{1,64}$' }),
    project: Type.Union([hexId, Type.Null()], { default: null }),
    repair: Type.Boolean({ default: false }),
    knownProjects: Type.Union([Type.Array(hexId, { maxItems: 1_000_000 }), Type.Null()], { default: null }),
    bytesPerSecond: Type.Union([Type.Integer({ minimum: 1_024 }), Type.Null()], { default: null }),
  },
  { additionalProperties: false },
);

function checked(body: unknown): ScrubRequest {
  try {
    return parseConfig(requestSchema, body ?? {}, 'request body');
  } catch (error) {
    throw new LakebaseError('INVALID_ARGUMENT', errorMessage(error), { cause: error });
  }
}

/** Lets so many bytes pass in a second, a second's worth at once after a rest. */
function newPace(bytesPerSecond: number, signal: AbortSignal): (bytes: number) => Promise<void> {
  let free = performance.now() - 1_000;
  return async (bytes) => {
    signal.throwIfAborted();
    free = Math.max(free, performance.now() - 1_000) + (bytes / bytesPerSecond) * 1_000;
    const wait = free - performance.now();
    if (wait > 0) await sleep(wait, signal);
  };
}
