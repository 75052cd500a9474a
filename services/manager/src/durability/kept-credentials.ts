/** The generated passwords of owners, beside their file: sealed in the catalog, so that they come back with it when a machine is lost.
 *  Invariant: the file is the original. What it has goes into the catalog; what it lacks comes from there. */
import type { Logger } from '@lakebase/base';
import type { CredentialKeeper, Credentials, OwnerCredential } from '../credentials.ts';
import type { Database } from '../metadata/database.ts';
import { openOptions, sealOptions } from '../model/key-info.ts';

/** Bound to the sealed bytes. */
const label = (name: string): string => `owner credential ${name}`;

export async function keepCredentials(credentials: Credentials, db: Database, secret: string, log: Logger): Promise<void> {
  // Soon is enough: it goes along with the verifier, which is committed afterwards and waits.
  const keep: CredentialKeeper = async (changed) => {
    for (const [name, credential] of changed)
      if (credential === null) await db.local.query('DELETE FROM owner_credentials WHERE name = $1', [name]);
      else
        await db.local.query(
          'INSERT INTO owner_credentials (name, sealed) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET sealed = EXCLUDED.sealed',
          [name, sealOptions(secret, label(name), { ...credential })],
        );
  };
  const stored = new Map<string, OwnerCredential>();
  for (const { name, sealed } of await db.query<{ name: string; sealed: Buffer }>('SELECT name, sealed FROM owner_credentials')) {
    const { role, password } = openOptions(secret, label(name), sealed);
    if (role !== undefined && password !== undefined) stored.set(name, { role, password });
  }
  const here = credentials.all();
  const lost = new Map([...stored].filter(([name]) => !here.has(name)));
  credentials.add(lost);
  if (lost.size > 0) log.warn({ passwords: lost.size }, 'generated passwords were not in their file; they are restored from the catalog');
  await keep(new Map([...here].filter(([name, c]) => stored.get(name)?.password !== c.password || stored.get(name)?.role !== c.role)));
  credentials.keepBy(keep);
}
