/** What the Manager knows of the keys of projects, from the key manager's watch (docs/flows/key-path.md).
 *  Invariants: computes of a project whose key may not be used are terminated at once and none is started; while nothing is heard from the
 *  key manager for longer than its lease nothing new is started, and nothing is terminated. */
import { type KeyManagerClient, type KeyState, type WatchedProject, keyUsable } from '@lakebase/api';
import { LakebaseError, type Logger, backoffDelay, errorMessage, isCode, sleep } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import { KeyWatch, lockReason } from '@lakebase/keys';

export interface KeyStatesOptions {
  readonly keys: KeyManagerClient;
  readonly log: Logger;
  /** Ends every compute of the project; called again until it succeeds or the key is usable again. */
  readonly terminate: (project: ProjectUid, why: string) => Promise<void>;
}

export class KeyStates {
  readonly #o: KeyStatesOptions;
  readonly #watch: KeyWatch;
  readonly #terminating = new Set<string>();
  readonly #stop = new AbortController();

  constructor(options: KeyStatesOptions) {
    this.#o = options;
    this.#watch = new KeyWatch({
      client: options.keys,
      log: options.log,
      listener: (project) => {
        if (this.refusal(project) !== undefined) void this.#terminate(project as ProjectUid);
      },
    });
  }

  /** Computes of a previous Manager whose key went meanwhile are terminated as soon as the first snapshot is here. */
  start(): void {
    this.#watch.start().catch(() => {});
  }
  async stop(): Promise<void> {
    this.#stop.abort(new LakebaseError('CLOSED', 'the Manager is stopping'));
    await this.#watch.stop();
  }

  of(project: string): WatchedProject | undefined {
    return this.#watch.state(project).known;
  }

  /** Why the project's data cannot be used now; undefined when it can. */
  refusal(project: string): string | undefined {
    const known = this.of(project);
    return known === undefined || keyUsable(known.state) ? undefined : explain(known.state, known.reason);
  }

  /** Throws KEY_REVOKED, or UNAVAILABLE when nobody can say. */
  requireUsable(project: string): void {
    const refusal = this.refusal(project);
    if (refusal !== undefined) throw new LakebaseError('KEY_REVOKED', refusal);
    const reason = lockReason(project, this.#watch.state(project));
    if (reason !== undefined) throw reason;
  }

  async #terminate(project: ProjectUid): Promise<void> {
    if (this.#terminating.has(project)) return;
    this.#terminating.add(project);
    try {
      for (let attempt = 0; !this.#stop.signal.aborted; attempt++) {
        const why = this.refusal(project);
        if (why === undefined) return;
        try {
          return await this.#o.terminate(project, why);
        } catch (error) {
          if (isCode(error, 'CLOSED')) return;
          this.#o.log.error({ project, err: errorMessage(error) }, 'computes of a project without a key are not gone yet; trying again');
        }
        await sleep(backoffDelay(attempt, { maxMs: 1_000 }), this.#stop.signal).catch(() => {});
      }
    } finally {
      this.#terminating.delete(project);
    }
  }
}

/** For clients: what happened, that nothing is lost, who can help. */
function explain(state: KeyState, reason: string): string {
  const because = reason === '' ? '' : ` (${reason})`;
  switch (state) {
    case 'REVOKED':
      return `the customer-managed key of this project is revoked${because}; nothing is lost: everything comes back by itself once the key is enabled again`;
    case 'SUSPENDED':
      return `the key management service of this project has not answered for longer than its grace${because}; everything comes back by itself once it answers`;
    default:
      return `the keys of this project were destroyed${because}: its data cannot be read by anybody any more`;
  }
}
