/** Stand-in for the key manager at the far end of the Manager: its routes over real HTTP, no cryptography. Tests set states and see calls. */
import { createHmac, randomBytes } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import {
  type CheckResult,
  type CreateProjectKey,
  INSTALLATION_REFERENCE_BYTES,
  type KeyState,
  type ProjectKeyStatus,
  type WatchLine,
} from '@lakebase/api';
import { LakebaseError } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';

interface Key {
  readonly binding: CreateProjectKey;
  state: KeyState;
  kek: number;
  grace?: number;
}

export class FakeKeyManager {
  readonly keys = new Map<string, Key>();
  readonly audit: { actor: string; action: string; subject: string; result: string }[] = [];
  /** Answer of a live check, by key. */
  readonly checks = new Map<string, Partial<CheckResult>>();
  /** Stands for the installation root key. */
  root = 'root';
  readonly #watchers = new Set<ServerResponse>();

  setState(project: string, state: KeyState): void {
    const key = this.keys.get(project) as Key;
    key.state = state;
    this.#send({ kind: 'change', ...this.#watched(project, key) });
  }

  handle(method: string, path: string, body: unknown): unknown {
    if (path === '/v1/installation/deks') return this.#freshDeks((body as { count: number }).count);
    if (path === '/v1/installation/unwrap') return this.#unwrap(body as Buffer);
    const [, , kind, project = '', verb] = path.split('?')[0]?.split('/') ?? [];
    if (kind === 'check') return this.#check(body as { kms: CreateProjectKey['kms'] });
    if (kind === 'audit') {
      this.audit.push(body as (typeof this.audit)[0]);
      return { sequence: this.audit.length };
    }
    if (project === '') return { projects: [...this.keys].map(([uid, k]) => this.#status(uid, k)) };
    if (method === 'PUT') {
      const known = this.keys.get(project);
      const key = { binding: body as CreateProjectKey, state: known?.state ?? 'ACTIVE', kek: known?.kek ?? 1 } satisfies Key;
      if (known === undefined || verb === 'binding') this.keys.set(project, key);
      this.#send({ kind: 'change', ...this.#watched(project, key) });
    }
    const key = this.keys.get(project);
    if (key === undefined) throw new LakebaseError('NOT_FOUND', `project ${project} has no key`);
    if (method === 'DELETE') {
      this.keys.delete(project);
      return { project, time: new Date().toISOString(), destroyedKeks: [], statement: 'destroyed' };
    }
    if (verb === 'rotate') key.kek++;
    if (method === 'PATCH') key.grace = (body as { graceSeconds: number }).graceSeconds;
    return this.#status(project, key);
  }

  /** `GET /v1/watch`. */
  watch(request: IncomingMessage, response: ServerResponse): void {
    response.writeHead(200, { 'content-type': 'application/x-ndjson' });
    const projects = [...this.keys].map(([uid, key]) => this.#watched(uid, key));
    response.write(`${JSON.stringify({ kind: 'snapshot', projects, leaseSeconds: 8 } satisfies WatchLine)}\n`);
    this.#watchers.add(response);
    request.once('close', () => this.#watchers.delete(response));
  }

  #freshDeks(count: number): Buffer {
    return Buffer.concat(
      Array.from({ length: count }, () => {
        const reference = randomBytes(INSTALLATION_REFERENCE_BYTES);
        return Buffer.concat([this.#dekOf(reference), reference]);
      }),
    );
  }
  #unwrap(references: Buffer): Buffer {
    const count = references.length / INSTALLATION_REFERENCE_BYTES;
    return Buffer.concat(
      Array.from({ length: count }, (_, i) =>
        this.#dekOf(references.subarray(i * INSTALLATION_REFERENCE_BYTES, (i + 1) * INSTALLATION_REFERENCE_BYTES)),
      ),
    );
  }
  /** As good as wrapped for a test: who knows the root knows the key. */
  #dekOf(reference: Buffer): Buffer {
    return createHmac('sha256', this.root).update(reference).digest();
  }

  #send(line: WatchLine): void {
    for (const w of this.#watchers) w.write(`${JSON.stringify(line)}\n`);
  }
  #watched(project: string, key: Key): { project: ProjectUid; state: KeyState; reason: string; kekVersion: number } {
    return {
      project: project as ProjectUid,
      state: key.state,
      reason: key.state === 'ACTIVE' ? '' : `set to ${key.state}`,
      kekVersion: key.kek,
    };
  }
  #check({ kms }: { kms: CreateProjectKey['kms'] }): CheckResult {
    const ok: CheckResult = { ok: true, outcome: 'OK', message: '', keyId: kms.key, keyVersion: '1' };
    return { ...ok, ...this.checks.get(kms.key) };
  }
  #status(project: string, key: Key): ProjectKeyStatus {
    const { account, configurationId, kms } = key.binding;
    const now = new Date().toISOString();
    return {
      project: project as ProjectUid,
      account,
      configurationId,
      provider: kms.provider,
      key: kms.key,
      state: key.state,
      reason: this.#watched(project, key).reason,
      keks: [{ version: key.kek, createTime: now, keyId: kms.key, keyVersion: '1', state: 'CURRENT' }],
      lastCheck: now,
      lastSuccess: now,
      history: [{ time: now, state: key.state, reason: '' }],
      graceSeconds: key.grace ?? 600,
    };
  }
}
