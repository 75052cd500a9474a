/** Files only the administrator may read: the personal access token and the passwords generated for owner roles. The passwords are in the database too,
 *  sealed (durability/kept-credentials.ts), and come back from there when the file is lost.
 *  Invariant: a password is in the file before its verifier is in the database, so a kill never leaves a role nobody can use. */
import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import type { Queryable } from './metadata/database.ts';
import { DEFAULT_WORKSPACE } from './model/names.ts';
import { generatePassword } from './model/scram.ts';
import { ADMIN_PREFIX, newToken, setAdminToken } from './store/tokens.ts';

export interface OwnerCredential {
  readonly role: string;
  readonly password: string;
}
/** Projects of the default workspace go by their own id. */
const keyOf = (workspace: string, project: string, branch: string): string =>
  `${workspace === DEFAULT_WORKSPACE ? '' : `${workspace}:`}${project}/${branch}`;
type File = Record<string, OwnerCredential>;

/** Told of every change of the file; null: the password is gone. */
export type CredentialKeeper = (changed: ReadonlyMap<string, OwnerCredential | null>) => Promise<void>;

export class Credentials {
  readonly #path: string;
  #keeper: CredentialKeeper | undefined;
  #kept: Promise<void> = Promise.resolve();

  constructor(path: string) {
    this.#path = path;
  }

  get(workspace: string, project: string, branch: string): OwnerCredential | undefined {
    return this.#read()[keyOf(workspace, project, branch)];
  }

  /** The password kept for this branch's owner, made now when there is none. */
  ensure(workspace: string, project: string, branch: string, role: string): OwnerCredential {
    const known = this.get(workspace, project, branch);
    return known?.role === role ? known : this.set(workspace, project, branch, { role, password: generatePassword() });
  }

  set(workspace: string, project: string, branch: string, credential: OwnerCredential): OwnerCredential {
    const key = keyOf(workspace, project, branch);
    this.#write({ ...this.#read(), [key]: credential });
    this.#keep(new Map([[key, credential]]));
    return credential;
  }

  /** By the names of the file. */
  all(): ReadonlyMap<string, OwnerCredential> {
    return new Map(Object.entries(this.#read()));
  }
  /** Those that the file has are left alone. */
  add(lost: ReadonlyMap<string, OwnerCredential>): void {
    if (lost.size > 0) this.#write({ ...Object.fromEntries(lost), ...this.#read() });
  }
  keepBy(keeper: CredentialKeeper): void {
    this.#keeper = keeper;
  }
  /** What was changed so far is where the keeper keeps it. Rejects when it is not. */
  async kept(): Promise<void> {
    await this.#kept;
  }

  removeProject(workspace: string, project: string): void {
    const all = Object.entries(this.#read());
    const isOf = ([key]: readonly [string, unknown]): boolean => key.startsWith(keyOf(workspace, project, ''));
    this.#write(Object.fromEntries(all.filter((entry) => !isOf(entry))));
    this.#keep(new Map(all.filter(isOf).map(([key]) => [key, null])));
  }

  #keep(changed: ReadonlyMap<string, OwnerCredential | null>): void {
    const before = this.#kept.catch(() => {});
    this.#kept = before.then(() => this.#keeper?.(changed));
    this.#kept.catch(() => {}); // told by kept()
  }

  #read(): File {
    if (!existsSync(this.#path)) return {};
    try {
      return JSON.parse(readFileSync(this.#path, 'utf8')) as File;
    } catch (cause) {
      throw new LakebaseError('CONFIG', `${this.#path} is not readable as JSON: repair it, or move it away and reset the passwords`, {
        cause,
      });
    }
  }

  #write(file: File): void {
    writePrivate(this.#path, `${JSON.stringify(file, null, 2)}\n`);
  }
}

/** The admin's token: the file is the original, the database has its hash. A file taken away means a new token. */
export async function ensureAdminToken(q: Queryable, path: string, identity: string): Promise<{ created: boolean }> {
  let token = existsSync(path) ? readFileSync(path, 'utf8').trim() : '';
  const created = token === '';
  if (created) {
    token = newToken(ADMIN_PREFIX);
    writePrivate(path, `${token}\n`);
  }
  if (token.length < 32) throw new LakebaseError('CONFIG', `${path} does not hold a token: delete the file to get a new one`);
  await setAdminToken(q, token, identity);
  return { created };
}

function writePrivate(path: string, text: string): void {
  mkdirSync(dirname(path), { recursive: true });
  const fresh = `${path}.new`;
  writeFileSync(fresh, text, { mode: 0o600, flush: true });
  chmodSync(fresh, 0o600);
  renameSync(fresh, path);
}
