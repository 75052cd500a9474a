/** All computes of this machine. One agent process each, one spare kept warm.
 *  Invariants: a compute id is used once; a compute's directories are removed when it has ended, whatever way; status of an ended compute
 *  is kept for a while so that the Manager learns why it ended. */
import { createHash } from 'node:crypto';
import { chownSync, mkdirSync, rmSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type ComputeChange,
  type ComputeSpec,
  type ComputeStatus,
  type PostgresLogTail,
  type RoleSecret,
  internalToken,
  timelineScope,
} from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import type { AgentSetup } from '../agent/protocol.ts';
import { COMPUTE_PORT } from '../agent/settings.ts';
import { AgentProcess } from './agent-process.ts';

const COMPUTE_ID = /^[a-z0-9][a-z0-9-]{0,62}$/;
const ENDED_KEPT = 200;

interface Compute {
  readonly agent: AgentProcess;
  readonly started: Promise<ComputeStatus>;
  status: ComputeStatus;
}

export interface ComputesOptions {
  readonly setup: AgentSetup;
  /** The installation of a major; throws when there is none. */
  readonly postgres: (major: number) => { readonly binDir: string; readonly libDir: string };
  readonly secret: string;
  readonly dataDir: string;
  readonly runtimeDir: string;
  readonly spareAgents: number;
  readonly log: Logger;
}

export class Computes {
  readonly #options: ComputesOptions;
  readonly #running = new Map<string, Compute>();
  readonly #ended = new Map<string, ComputeStatus>();
  readonly #spares: AgentProcess[] = [];
  /** Highest term seen by timeline. */
  readonly #terms = new Map<string, number>();
  #closing = false;

  constructor(options: ComputesOptions) {
    this.#options = options;
    // Earlier versions wrote Postgres's messages, which hold data, into files.
    for (const dir of [this.#scratch(), options.runtimeDir, join(options.dataDir, 'logs')]) rmSync(dir, { recursive: true, force: true });
    mkdirSync(options.dataDir, { recursive: true, mode: 0o755 });
    mkdirSync(this.#scratch(), { mode: 0o711 });
    mkdirSync(options.runtimeDir, { recursive: true, mode: 0o711 });
    this.#mkdirOwned(options.setup.warmUp.directory);
    this.#refillSpares();
  }

  async start(id: string, spec: ComputeSpec): Promise<ComputeStatus> {
    if (!COMPUTE_ID.test(id)) throw new LakebaseError('INVALID_ID', 'a compute id has 1 to 63 lower-case letters, digits and hyphens');
    const known = this.#running.get(id);
    if (known !== undefined) return known.started;
    if (this.#ended.has(id)) throw new LakebaseError('CONFLICT', `compute ${id} has ended; every start takes a fresh id`);
    if (this.#closing) throw new LakebaseError('CLOSED', 'the compute host is stopping');
    const { binDir, libDir } = this.#options.postgres(spec.pgVersion);
    const directory = join(this.#scratch(), id);
    const socketDir = join(this.#options.runtimeDir, createHash('sha256').update(id).digest('hex').slice(0, 10));
    this.#mkdirOwned(directory);
    this.#mkdirOwned(socketDir, 0o711);
    const agent = this.#spares.shift() ?? new AgentProcess(this.#options.setup);
    const token = internalToken(this.#options.secret, timelineScope(spec.projectUid, spec.timelineId));
    const started = agent.request('start', {
      computeId: id,
      postgres: { binDir, libDir },
      spec,
      token,
      directory,
      socketDir,
      lastTerm: this.#terms.get(spec.timelineId) ?? null,
    });
    const compute: Compute = { agent, started, status: blank(id, spec.endpointId, 'STARTING', null) };
    this.#running.set(id, compute);
    agent.onStatus = (status) => {
      compute.status = status;
      if (status.term !== null) this.#terms.set(spec.timelineId, Math.max(status.term, this.#terms.get(spec.timelineId) ?? 0));
      if (status.state === 'FAILED' || status.state === 'STOPPED') void agent.end();
    };
    void agent.exited.then(() => this.#gone(id, compute, [directory, socketDir]));
    started.catch(() => void agent.end()).finally(() => this.#refillSpares());
    return started;
  }

  list(): ComputeStatus[] {
    return [...[...this.#running.values()].map((c) => c.status), ...this.#ended.values()];
  }

  status(id: string): ComputeStatus {
    const status = this.#running.get(id)?.status ?? this.#ended.get(id);
    if (status === undefined) throw new LakebaseError('NOT_FOUND', `no compute ${id}`);
    return status;
  }

  /** Status with the activity of this moment: before a compute is called idle. */
  async look(id: string): Promise<ComputeStatus> {
    const compute = this.#running.get(id);
    if (compute === undefined || compute.status.state !== 'RUNNING') return this.status(id);
    return compute.agent.request('look', {});
  }

  change(id: string, change: ComputeChange): Promise<ComputeStatus> {
    return this.#get(id).agent.request('change', change);
  }

  log(id: string, lines: number): Promise<PostgresLogTail> {
    return this.#get(id).agent.request('log', { lines });
  }

  /** NOT_FOUND means that its server knows no such role; CONFLICT, that there is no server to ask. */
  async role(id: string, name: string): Promise<RoleSecret> {
    return this.#get(id, 'CONFLICT').agent.request('role', { name });
  }

  async stop(id: string, mode: 'fast' | 'immediate'): Promise<ComputeStatus> {
    const compute = this.#running.get(id);
    if (compute === undefined) return this.#ended.get(id) ?? blank(id, '', 'STOPPED', null);
    try {
      await compute.agent.request('stop', { mode });
    } catch (error) {
      this.#options.log.warn({ computeId: id, err: errorMessage(error) }, 'agent did not stop its compute in order');
    }
    await compute.agent.end();
    await compute.agent.exited;
    return this.#ended.get(id) ?? compute.status;
  }

  async close(): Promise<void> {
    this.#closing = true;
    await Promise.all([...this.#running.keys()].map((id) => this.stop(id, 'fast')));
    await Promise.all(this.#spares.map((agent) => agent.end()));
    rmSync(this.#options.runtimeDir, { recursive: true, force: true });
  }

  #get(id: string, otherwise: 'NOT_FOUND' | 'CONFLICT' = 'NOT_FOUND'): Compute {
    const compute = this.#running.get(id);
    if (compute === undefined) throw new LakebaseError(otherwise, `compute ${id} is not running`);
    return compute;
  }

  #gone(id: string, compute: Compute, directories: readonly string[]): void {
    this.#running.delete(id);
    const { status } = compute;
    const ended =
      status.state === 'STOPPED' || status.state === 'FAILED'
        ? status
        : { ...status, state: 'FAILED' as const, error: 'the agent process ended', socketDir: null };
    this.#ended.set(id, ended);
    for (const old of this.#ended.keys()) if (this.#ended.size > ENDED_KEPT) this.#ended.delete(old);
    // Postgres dies with its agent; its last processes may still be leaving the directory.
    for (const dir of directories) {
      rm(dir, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 }).catch((error: unknown) =>
        this.#options.log.warn({ dir, err: errorMessage(error) }, 'scratch directory not removed; the next start of the host does it'),
      );
    }
  }

  #refillSpares(): void {
    while (!this.#closing && this.#spares.length < this.#options.spareAgents) {
      const agent = new AgentProcess(this.#options.setup);
      this.#spares.push(agent);
      void agent.exited.then(() => {
        const at = this.#spares.indexOf(agent);
        if (at >= 0) this.#spares.splice(at, 1);
      });
    }
  }

  #mkdirOwned(path: string, mode = 0o700): void {
    mkdirSync(path, { recursive: true, mode });
    const { account } = this.#options.setup;
    if (account !== null) chownSync(path, account.uid, account.gid);
  }

  #scratch(): string {
    return join(this.#options.dataDir, 'computes');
  }
}

const blank = (computeId: string, endpointId: string, state: ComputeStatus['state'], error: string | null): ComputeStatus => ({
  computeId,
  endpointId,
  state,
  error,
  term: null,
  startLsn: null,
  socketDir: null,
  port: COMPUTE_PORT,
  pid: null,
  stages: {},
  activity: { active: false, lastActiveAt: null, reason: null },
});
