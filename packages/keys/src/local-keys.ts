/** Keys without a key manager, for tests of services: random KEKs in memory, with switches for revocation and rotation. The same
 *  {@link ProjectKeyStore} as in production, so what was not reserved or loaded fails here as it does there. Keys last as long as this
 *  object: hand the same one to the service that is started again. */
import { LakebaseError, type Logger, silentLogger } from '@lakebase/base';
import { decodeDekReference, randomSecret, rewrapDek, unwrapDek, wipe, wrapDek } from '@lakebase/envelope';
import type { KeyListener, KeySource } from './key-ring.ts';
import { ProjectKeyStore } from './project-keys.ts';

const ACCOUNT = 'local';

interface LocalProject {
  /** Index + 1 is the version. */
  readonly keks: Buffer[];
  keys: ProjectKeyStore;
  revoked: LakebaseError | undefined;
}

export class LocalKeys implements KeySource {
  readonly #projects = new Map<string, LocalProject>();
  #listeners: KeyListener[] = [];
  #rotations: ((project: string, kekVersion: number) => void)[] = [];
  #reEncryptions: ((project: string, below: number) => void)[] = [];
  readonly #log: Logger;
  readonly #poolSize: number;
  readonly #kekOwner: LocalKeys;

  constructor(options: { log?: Logger; poolSize?: number; sameKeksAs?: LocalKeys } = {}) {
    this.#log = options.log ?? silentLogger;
    this.#poolSize = options.poolSize ?? 64;
    this.#kekOwner = options.sameKeksAs ?? this;
  }

  async start(): Promise<void> {}
  /** As a process that ends: caches are wiped, KEKs stay for the next start. */
  async stop(): Promise<void> {
    this.#listeners = [];
    this.#rotations = [];
    this.#reEncryptions = [];
    for (const [uid, project] of this.#projects) {
      project.keys.lock(new LakebaseError('UNAVAILABLE', 'stopped'));
      project.keys = this.#store(uid, project);
    }
  }

  onChange(listener: KeyListener): void {
    this.#listeners.push(listener);
  }
  onRotation(listener: (project: string, kekVersion: number) => void): void {
    this.#rotations.push(listener);
  }

  onReEncryption(listener: (project: string, below: number) => void): void {
    this.#reEncryptions.push(listener);
  }

  project(uid: string): ProjectKeyStore {
    return this.#local(uid).keys;
  }

  revoke(uid: string, reason = 'revoked by the test'): void {
    const project = this.#local(uid);
    project.revoked = new LakebaseError('KEY_REVOKED', reason);
    project.keys.lock(project.revoked);
    for (const listener of this.#listeners) listener(uid, false, reason);
  }

  restore(uid: string): void {
    const project = this.#local(uid);
    project.revoked = undefined;
    project.keys.unlock();
    for (const listener of this.#listeners) listener(uid, true, '');
  }

  /** A new KEK version. */
  rotate(uid: string): number {
    const project = this.#local(uid);
    project.keks.push(randomSecret());
    project.keys.setKekVersion(project.keks.length);
    for (const listener of this.#rotations) listener(uid, project.keks.length);
    return project.keks.length;
  }

  /** A new KEK version, and everything from before is to be rewritten. */
  reEncrypt(uid: string): number {
    const below = this.rotate(uid);
    for (const listener of this.#reEncryptions) listener(uid, below);
    return below;
  }

  /** As after `retire`: references of these versions do not open any more. */
  destroy(uid: string, below: number): void {
    wipe(...this.#local(uid).keks.slice(0, below - 1));
  }

  #local(uid: string): LocalProject {
    let project = this.#projects.get(uid);
    if (project === undefined) {
      const keks = this.#kekOwner === this ? [randomSecret()] : this.#kekOwner.#local(uid).keks;
      const made = { keks, revoked: undefined } as unknown as LocalProject;
      made.keys = this.#store(uid, made);
      this.#projects.set(uid, (project = made));
    }
    return project;
  }

  #store(uid: string, project: LocalProject): ProjectKeyStore {
    const { keks } = project;
    const check = (): void => {
      if (project.revoked !== undefined) throw project.revoked;
    };
    const kekOf = (reference: Buffer): Buffer => {
      const kek = keks[decodeDekReference(reference).kekVersion - 1];
      if (kek === undefined) throw new LakebaseError('CORRUPT', 'a key reference names a key version that does not exist');
      return kek;
    };
    const newest = (): Buffer => keks[keks.length - 1] as Buffer;
    const store = new ProjectKeyStore({
      project: uid,
      log: this.#log,
      poolSize: this.#poolSize,
      cacheSize: 65_536,
      locked: project.revoked,
      backend: {
        deks: async (count) => {
          check();
          return Array.from({ length: count }, () => {
            const dek = randomSecret();
            return { dek, reference: wrapDek(newest(), keks.length, ACCOUNT, uid, dek) };
          });
        },
        unwrap: async (references) => {
          check();
          return references.map((r) => orZeros(32, () => unwrapDek(kekOf(r), ACCOUNT, uid, r)));
        },
        rewrap: async (references) => {
          check();
          return references.map((r) => orZeros(r.length, () => rewrapDek(kekOf(r), newest(), keks.length, ACCOUNT, uid, r)));
        },
      },
    });
    store.setKekVersion(keks.length);
    return store;
  }
}

/** As the key manager answers for a reference that does not unwrap. */
function orZeros(bytes: number, open: () => Buffer): Buffer {
  try {
    return open();
  } catch (error) {
    if (error instanceof LakebaseError) return Buffer.alloc(bytes);
    throw error;
  }
}
