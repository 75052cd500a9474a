/** The keys of a project as who has the customer key can compute them, to look for where they must not be: the KEKs it opens, data keys of layers
 *  and WAL segments that these open, and the frame keys derived from those. By the book, not by our own code: docs/formats/envelope.md, layer.md,
 *  wal-segment.md, key-store.md. */
import { createDecipheriv, hkdfSync } from 'node:crypto';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { openKmsKey } from '@lakebase/kms';
import type { Cluster } from '@lakebase/testkit';
import type { KeyedProject } from './key-scene.ts';

const LAYER = { epoch: 88, reference: 106 } as const;
const SEGMENT = { epoch: 4_096 + 32, reference: 68 } as const;
const ACCOUNT = 'default';

interface StoredKek {
  readonly version: number;
  readonly wrapped: { readonly blob: string; readonly algorithm: string };
  readonly keyId: string;
  readonly keyVersion: string;
}

export interface ProjectKeys {
  /** In the key manager's memory while the key may be used. */
  readonly keks: ReadonlyMap<string, Buffer>;
  /** In that of storage while the objects are open. */
  readonly deks: ReadonlyMap<string, Buffer>;
  /** All of them, and the customer key. */
  readonly all: ReadonlyMap<string, Buffer>;
}

/** Of a project under a key file, while that is there. */
export async function keysOf(cluster: Cluster, project: KeyedProject): Promise<ProjectKeys> {
  const cmk = readFileSync(project.keyFile, 'latin1').trim();
  const keks = await unwrapped(cluster, project);
  const kek = keks.get('KEK 1') as Buffer;
  const deks = new Map<string, Buffer>();
  const add = (name: string, file: string, at: { readonly epoch: number; readonly reference: number }): void => {
    const bytes = readFileSync(file);
    const dek = dataKey(kek, project.uid, bytes.subarray(at.reference));
    deks.set(`data key of ${name}`, dek);
    deks.set(
      `frame key of ${name}`,
      Buffer.from(hkdfSync('sha256', dek, bytes.subarray(at.epoch, at.epoch + 16), 'lakebase frame v1', 32)),
    );
  };
  const data = join(cluster.home, 'data');
  add('a layer', newest(join(data, 'pageserver', 'timelines', project.uid), /\.layer$/), LAYER);
  for (const sk of ['sk1', 'sk2', 'sk3']) add(`a segment of ${sk}`, newest(join(data, sk, project.uid), /\/wal\/[0-9A-F]{24}$/), SEGMENT);
  const customer = new Map([
    ['customer key', Buffer.from(cmk, 'hex')],
    ['customer key, as text', Buffer.from(cmk, 'latin1')],
  ]);
  return { keks, deks, all: new Map([...customer, ...keks, ...deks]) };
}

async function unwrapped(cluster: Cluster, project: KeyedProject): Promise<Map<string, Buffer>> {
  const [, body = ''] = readFileSync(join(cluster.home, 'data', 'keymanager', 'projects', `${project.uid}.json`), 'utf8').split('\n');
  const { keks } = JSON.parse(body) as { keks: StoredKek[] };
  const key = openKmsKey({ provider: 'LOCAL', key: project.keyFile }, { rootKeyPath: join(cluster.home, 'keys', 'root.key') });
  const found = new Map<string, Buffer>();
  for (const { version, wrapped, keyId, keyVersion } of keks) {
    const context = { project: project.uid, account: ACCOUNT, purpose: 'kek', kekVersion: version };
    const stored = { blob: Buffer.from(wrapped.blob, 'base64'), algorithm: wrapped.algorithm, keyId, keyVersion };
    found.set(`KEK ${version}`, await key.unwrap(stored, context, AbortSignal.timeout(5_000)));
  }
  key.close();
  return found;
}

/** `u8 version · u32 KEK version · nonce (12) · wrapped (32) · tag (16) · commitment (32)`; the tag says that this is the key. */
function dataKey(kek: Buffer, project: string, reference: Buffer): Buffer {
  const decipher = createDecipheriv('aes-256-gcm', kek, reference.subarray(5, 17), { authTagLength: 16 });
  const account = Buffer.concat([Buffer.from([0, ACCOUNT.length]), Buffer.from(ACCOUNT)]);
  const [version, commitment] = [reference.subarray(1, 5), reference.subarray(65, 97)];
  decipher.setAAD(Buffer.concat([Buffer.from('lakebase dek v1'), account, Buffer.from(project, 'hex'), version, commitment]));
  decipher.setAuthTag(reference.subarray(49, 65));
  const dek = decipher.update(reference.subarray(17, 49));
  decipher.final();
  return dek;
}

/** The last by name of what matches below a directory. */
function newest(dir: string, pattern: RegExp): string {
  const names = (readdirSync(dir, { recursive: true }) as string[]).filter((name) => pattern.test(`/${name}`)).sort();
  const last = names.at(-1);
  if (last === undefined) throw new Error(`nothing in ${dir} matches ${String(pattern)}`);
  return join(dir, last);
}
