/** Changes of KEKs and bindings: create, rotate, re-wrap, rebind, retire, shred. Each is one replacement of the project's file, between a
 *  `…_BEGIN` line in the audit log and the line that says it is done: a kill at any point leaves the old keys or the new ones.
 *  Invariant: a KEK leaves the key manager's memory only wrapped, and is stored only after the KMS unwrapped that very wrapping. */
import { createHash } from 'node:crypto';
import {
  type CreateProjectKey,
  type ProjectKeyStatus,
  type ReEncryptionReport,
  type RebindRequest,
  type ShredReport,
  keyUsable,
} from '@lakebase/api';
import { LakebaseError, SerialQueue, errorMessage } from '@lakebase/base';
import { copySecret, randomSecret, wipe } from '@lakebase/envelope';
import type { ProjectUid } from '@lakebase/ids';
import { iso, newHealth, shredded } from './health.ts';
import type { KeyManager } from './key-manager.ts';
import { kekCheck, sameKey } from './kms/kms-access.ts';
import type { ProjectState } from './project-state.ts';
import type { ChangeAction } from './record-rollback.ts';
import { type KekRecord, type ProjectRecord, currentKek } from './store/project-record.ts';

const COPY_REMAINS = 'the copy of a shredded key record is not replaced in the object store yet; it is tried again';

type Identity = Pick<ProjectRecord, 'project' | 'account' | 'kms'>;

export class KeyChanges {
  readonly #m: KeyManager;
  readonly #creating = new SerialQueue();

  constructor(manager: KeyManager) {
    this.#m = manager;
  }

  /** Idempotent: a project that has a key keeps it. */
  create(project: ProjectUid, body: CreateProjectKey): Promise<ProjectKeyStatus> {
    return this.#creating.run(async () => {
      const known = this.#m.peek(project);
      if (known !== undefined) {
        if (known.state === 'SHREDDED')
          throw new LakebaseError('CONFLICT', `the keys of project ${project} were shredded; a new project needs a new id`);
        return this.#m.statusOf(known);
      }
      const now = this.#m.o.clock.now();
      const identity = this.#m.newRecord(project, body);
      const secret = randomSecret();
      try {
        const first = await this.#wrapped(identity, 1, secret, body.actor);
        const p = await this.#m.add({
          ...identity,
          createTime: iso(now),
          revision: 0,
          keks: [first],
          health: newHealth(now),
          lastSuccess: iso(now),
          retired: {},
          shred: null,
          audit: this.#m.o.audit.durableHead,
        });
        this.#m.o.cache.put(project, 1, secret);
        await this.#done(p, body.actor, 'KEY_CREATE', `KEK 1 under ${first.keyId}${version(first)}`);
        this.#m.notify(p);
        return this.#m.statusOf(p);
      } finally {
        wipe(secret);
      }
    });
  }

  /** A new KEK for what is written from now on. */
  rotate(project: ProjectUid, actor: string): Promise<ProjectKeyStatus> {
    return this.#change(project, (p) => this.#rotate(p, actor));
  }

  /** A new KEK, and the request that storage services rewrite every object whose DEK was made under an older one. While one is under way,
   *  asking again changes nothing. */
  reEncrypt(project: ProjectUid, actor: string): Promise<ProjectKeyStatus> {
    return this.#change(project, async (p) => {
      if (p.record.reEncryption?.finishTime === null) return;
      const below = p.record.keks.length + 1;
      const requestTime = iso(this.#m.o.clock.now());
      p.progress.clear();
      await this.#rotate(p, actor, { reEncryption: { below, requestTime, actor, finishTime: null, services: {} } });
      await this.#done(p, actor, 'RE_ENCRYPT_BEGIN', `every object whose data key was made under a KEK before ${below}`);
    });
  }

  /** Told by storage services as they go on. A report about an earlier request says nothing about this one. */
  async reportReEncryption(project: ProjectUid, { service, below, ...report }: ReEncryptionReport): Promise<ProjectKeyStatus> {
    const { storageServices } = this.#m.o;
    if (!storageServices.includes(service))
      throw new LakebaseError('INVALID_ARGUMENT', `${service} is not one of the storage services (${storageServices.join(', ')})`);
    return this.#change(project, async (p) => {
      const asked = p.record.reEncryption;
      if (asked === undefined || asked.below !== below || asked.services[service] !== undefined) return;
      const progress = { ...report, time: iso(this.#m.o.clock.now()) };
      if (!report.finished) return void p.progress.set(service, progress);
      const services = { ...asked.services, [service]: progress };
      const all = storageServices.every((s) => services[s] !== undefined);
      this.#m.save(p, { reEncryption: { ...asked, services, finishTime: all ? progress.time : null } });
      await this.#done(p, service, 'RE_ENCRYPT', `${report.done} objects, ${report.bytes} bytes written${all ? '; the last service' : ''}`);
    });
  }

  #rotate(p: ProjectState, actor: string, more: Partial<ProjectRecord> = {}): Promise<void> {
    return (async () => {
      p.requireUsable();
      const { project } = p;
      const next = p.record.keks.length + 1;
      const secret = randomSecret();
      try {
        const fresh = await this.#wrapped(p.record, next, secret, actor);
        await this.#m.audit(p.record, actor, 'KEK_ROTATE_BEGIN', 'OK', `to KEK ${next}`);
        const keks = p.record.keks.map((k): KekRecord => (k.state === 'CURRENT' ? { ...k, state: 'OLD' } : k));
        await this.#m.saveKeys(p, { ...more, keks: [...keks, fresh] }, false, () => p.requireUsable());
        p.wraps = 0;
        this.#m.o.cache.put(project, next, secret);
      } finally {
        wipe(secret);
      }
      await this.#done(p, actor, 'KEK_ROTATE', `KEK ${next} is current`);
      this.#m.notify(p);
    })();
  }

  /** The same KEKs under the newest version of the same CMK. */
  rewrapKek(project: ProjectUid, actor: string): Promise<ProjectKeyStatus> {
    return this.#change(project, async (p) => {
      const keks = await this.#rewrapAll(p, p.record, actor);
      await this.#m.audit(p.record, actor, 'KEK_REWRAP_BEGIN', 'OK', `${live(keks).length} KEKs`);
      await this.#m.saveKeys(p, { keks }, true, () => p.requireUsable());
      await this.#done(p, actor, 'KEK_REWRAP', `${live(keks).length} KEKs under ${live(keks).at(-1)?.keyId}${version(live(keks).at(-1))}`);
      this.#m.proved(p);
      this.#m.notify(p);
    });
  }

  /** The same KEKs under another CMK; the former wrapping is destroyed. Works while the former KMS answers, or its KEKs are cached. */
  rebind(project: ProjectUid, body: RebindRequest): Promise<ProjectKeyStatus> {
    return this.#change(project, async (p) => {
      if (body.account !== p.record.account)
        throw new LakebaseError(
          'INVALID_ARGUMENT',
          `project ${project} belongs to account ${p.record.account}: its data keys are bound to it`,
        );
      const { kms: former, configurationId: formerId } = p.record;
      const target = { ...p.record, ...this.#m.newRecord(project, { graceSeconds: p.record.graceSeconds, ...body }) };
      if (sameKey(former, target.kms) && live(p.record.keks).every((k) => k.wrapped !== null) && p.usable) {
        this.#m.save(p, { configurationId: target.configurationId, graceSeconds: target.graceSeconds });
        await this.#done(p, body.actor, 'KEY_BIND', 'the same key as before');
        return;
      }
      const keks = await this.#rewrapAll(p, target, body.actor);
      const what = `from ${former.provider} ${former.key} (${formerId ?? 'installation root key'}) to ${target.kms.provider} ${target.kms.key} (${target.configurationId ?? 'installation root key'})`;
      await this.#m.audit(p.record, body.actor, 'KEY_BIND_BEGIN', 'OK', what);
      const changes = { keks, kms: target.kms, configurationId: target.configurationId, graceSeconds: target.graceSeconds };
      await this.#m.saveKeys(p, changes, true, () => p.requireUsable());
      if (!this.#m.projects().some((other) => sameKey(other.record.kms, former))) this.#m.o.kms.forget(former);
      await this.#done(p, body.actor, 'KEY_BIND', what);
      this.#m.proved(p);
      this.#m.notify(p);
    });
  }

  /** How long an outage of the project's KMS is ridden out from now on, one that is running included. Needs no KMS. A project that is SUSPENDED
   *  already stays so until its KMS answers. */
  setGrace(project: ProjectUid, graceSeconds: number, actor: string): Promise<ProjectKeyStatus> {
    return this.#change(project, async (p) => {
      const was = p.record.graceSeconds;
      if (was === graceSeconds) return;
      this.#m.save(p, { graceSeconds });
      await this.#done(p, actor, 'KEY_GRACE', `grace ${was} s to ${graceSeconds} s`);
    });
  }

  /** `service` holds no reference of a KEK version below `below`. When every storage service said so, those KEKs are destroyed. */
  retire(project: ProjectUid, service: string, below: number): Promise<ProjectKeyStatus> {
    const { storageServices } = this.#m.o;
    if (!storageServices.includes(service))
      throw new LakebaseError('INVALID_ARGUMENT', `${service} is not one of the storage services (${storageServices.join(', ')})`);
    if (!Number.isSafeInteger(below) || below < 1) throw new LakebaseError('INVALID_ARGUMENT', 'below is a KEK version');
    return this.#change(project, async (p) => {
      if (p.state === 'SHREDDED') return;
      const upTo = Math.min(below, p.record.keks.length);
      if ((p.record.retired[service] ?? 0) >= upTo) return;
      const retired = { ...p.record.retired, [service]: upTo };
      const all = Math.min(...storageServices.map((s) => retired[s] ?? 0));
      const doomed = p.record.keks.filter((k) => k.version < all && k.wrapped !== null);
      if (doomed.length === 0) return this.#m.save(p, { retired });
      const versions = doomed.map((k) => k.version).join(', ');
      await this.#m.audit(p.record, service, 'KEK_DESTROY_BEGIN', 'OK', `KEK ${versions}: no storage service holds a reference of it`);
      const keks = p.record.keks.map((k): KekRecord => (doomed.includes(k) ? { ...k, state: 'DESTROYED', wrapped: null } : k));
      this.#m.save(p, { retired, keks }, true);
      for (const k of doomed) this.#m.o.cache.wipeVersion(project, k.version);
      await this.#done(p, service, 'KEK_DESTROY', `KEK ${versions}`);
    });
  }

  /** Destroys every wrapped KEK. Needs no KMS; idempotent. */
  async shred(project: ProjectUid, actor: string): Promise<ShredReport> {
    const p = this.#m.find(project);
    // Not behind a change that waits for a KMS: those look at the state again before they store anything.
    if (p.record.shred !== null) return p.record.shred;
    const time = iso(this.#m.o.clock.now());
    const destroyedKeks = live(p.record.keks).map(({ version: v, keyId, keyVersion, wrapped }) => ({
      version: v,
      keyId,
      keyVersion,
      sha256: createHash('sha256')
        .update(Buffer.from((wrapped as { blob: string }).blob, 'base64'))
        .digest('hex'),
    }));
    const shred: ShredReport = {
      project,
      time,
      destroyedKeks,
      statement:
        `At ${time} ${actor} had the ${p.record.keks.length} key encryption keys of project ${project} destroyed. They existed only wrapped, in the key manager's ` +
        'record of the project; the record was replaced and the former file overwritten. Every object of the project (layers, indexes, WAL segments, ' +
        'suspend state, boot sets; on disks and in the object store) is encrypted under data keys that exist only wrapped by these keys, so whatever remains of the objects, wherever it was ' +
        'copied, cannot be decrypted. What computes of the project had on their disks was encrypted under keys of one boot, which were never stored and went with ' +
        "their processes. The record's copy in the object store is replaced in the same way. Copies of the key manager's directory made before this time, and " +
        'former versions of that object where the store keeps them, if there are any, hold the wrapped keys still: they open ' +
        'only for who may use the customer key that wrapped them.',
    };
    this.#m.o.audit.append({
      actor,
      action: 'SHRED_BEGIN',
      account: p.record.account,
      subject: project,
      result: 'OK',
      detail: `${destroyedKeks.length} wrapped KEKs`,
    });
    const before = p.health;
    this.#m.force(p, shredded(p.health, this.#m.o.clock.now()));
    try {
      const { provider, key } = p.record.kms;
      this.#m.save(
        p,
        { keks: p.record.keks.map((k): KekRecord => ({ ...k, state: 'DESTROYED', wrapped: null })), shred, kms: { provider, key } },
        true,
      );
    } catch (error) {
      if (p.record.shred === null) {
        p.health = before; // nothing was destroyed: say so, and let it be tried again
        this.#m.notify(p);
      }
      throw error;
    }
    // What is not replaced now is tried again in the background, also after a restart.
    await this.#m.o.copies
      ?.put(p.record)
      .catch((error: unknown) => this.#m.o.log.error({ project, err: errorMessage(error) }, COPY_REMAINS));
    await this.#done(p, actor, 'SHRED', destroyedKeks.map((k) => `KEK ${k.version} sha256 ${k.sha256}`).join(', '));
    return shred;
  }

  /** The line that says a change is stored, and as which revision of the record: a record put back from a copy is older than that. */
  async #done(p: ProjectState, actor: string, action: ChangeAction, detail: string): Promise<void> {
    await this.#m.audit(p.record, actor, action, 'OK', `${detail} (record ${p.record.revision})`);
  }

  #change(project: ProjectUid, run: (p: ProjectState) => Promise<void>): Promise<ProjectKeyStatus> {
    const p = this.#m.find(project);
    return p.changes.run(async () => {
      if (p.state === 'SHREDDED') throw new LakebaseError('KEY_REVOKED', `the keys of project ${project} were shredded`);
      await run(p);
      return this.#m.statusOf(p);
    });
  }

  async #rewrapAll(p: ProjectState, target: Identity, actor: string): Promise<KekRecord[]> {
    if (!keyUsable(p.state)) p.requireUsable();
    const wanted = live(p.record.keks).map((k) => k.version);
    const secrets = await this.#m.withKeks(p, wanted, (keks) => new Map([...keks].map(([v, kek]) => [v, copySecret(kek.bytes)])));
    try {
      const keks: KekRecord[] = [];
      for (const kek of p.record.keks) {
        const secret = secrets.get(kek.version);
        keks.push(
          secret === undefined
            ? kek
            : {
                ...(await this.#wrapped(target, kek.version, secret, actor)),
                createTime: kek.createTime,
                state: kek.state,
                wrapsReserved: kek.wrapsReserved,
              },
        );
      }
      p.requireUsable(); // while KMS were waited for
      return keks;
    } finally {
      wipe(...secrets.values());
    }
  }

  async #wrapped(identity: Identity, kekVersion: number, secret: Buffer, actor: string): Promise<KekRecord> {
    const subject = { project: identity.project, account: identity.account };
    try {
      const { wrapped, keyId, keyVersion } = await this.#m.o.kms.wrap(subject, identity.kms, kekVersion, secret);
      await this.#m.audit(subject, actor, 'KMS_WRAP', 'OK', `KEK ${kekVersion} under ${keyId}${version({ keyVersion })}`);
      return {
        version: kekVersion,
        createTime: iso(this.#m.o.clock.now()),
        state: 'CURRENT',
        wrapped,
        keyId,
        keyVersion,
        check: kekCheck(secret),
        wrapsReserved: 0,
      };
    } catch (error) {
      const outcome = (error as { outcome?: string }).outcome;
      const result = outcome === 'DENIED' || outcome === 'UNREACHABLE' ? outcome : 'FAILED';
      await this.#m.audit(subject, actor, 'KMS_WRAP', result, `KEK ${kekVersion}: ${(error as Error).message}`);
      throw error;
    }
  }
}

const live = (keks: readonly KekRecord[]): readonly KekRecord[] => keks.filter((k) => k.wrapped !== null);
const version = (k: { readonly keyVersion: string } | undefined): string =>
  k === undefined || k.keyVersion === '' ? '' : ` version ${k.keyVersion}`;
/** Does the newest KEK want replacing by age? */
export const olderThan = (p: ProjectState, ms: number, now: number): boolean => {
  const kek = currentKek(p.record);
  return kek !== undefined && now - Date.parse(kek.createTime) > ms;
};
