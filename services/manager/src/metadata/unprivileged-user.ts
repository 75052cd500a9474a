/** The account Postgres runs under. Postgres refuses to run as root, so when we are root we hand it to an unprivileged account. */
import { execFileSync } from 'node:child_process';
import { chownSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { LakebaseError } from '@lakebase/base';

export interface Account {
  readonly uid: number;
  readonly gid: number;
  readonly name: string;
}

/** Undefined when we are not root: Postgres then runs as ourselves. */
export function unprivilegedAccount(): Account | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const wanted = process.env.LAKEBASE_POSTGRES_USER;
  for (const name of wanted === undefined ? ['postgres', 'nobody'] : [wanted]) {
    try {
      const id = (flag: string): number => Number(execFileSync('id', [flag, name], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }));
      const uid = id('-u');
      if (uid !== 0) return { uid, gid: id('-g'), name };
    } catch {
      /* no such account: try the next */
    }
  }
  throw new LakebaseError('CONFIG', 'Postgres does not run as root and there is no account "postgres" or "nobody"; name one in LAKEBASE_POSTGRES_USER');
}

export function giveTo(account: Account | undefined, path: string): void {
  if (account !== undefined) chownSync(path, account.uid, account.gid);
}

/** Every ancestor must let the account through; otherwise Postgres fails later with a message nobody understands. */
export function checkTraversable(account: Account | undefined, path: string, advice: string): void {
  if (account === undefined) return;
  for (let dir = dirname(resolve(path)); ; dir = dirname(dir)) {
    const s = statSync(dir);
    const bit = s.uid === account.uid ? 0o100 : s.gid === account.gid ? 0o010 : 0o001;
    if ((s.mode & bit) === 0)
      throw new LakebaseError('CONFIG', `running as root, Postgres runs as "${account.name}", and that account may not pass through ${dir}: ${advice}`);
    if (dir === dirname(dir)) return;
  }
}
