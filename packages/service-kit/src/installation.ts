/** Whose objects a store holds: the object `installation` names the installation by its secret and its root key, without telling anything of either.
 *  Written once, with the first project; a start with another secret or root key, or with none, must not go on: it would begin a second, empty
 *  installation over what is there (docs/operating/recovery.md). */
import { createHash, createHmac } from 'node:crypto';
import { LakebaseError, isCode, silentLogger } from '@lakebase/base';
import { INSTALLATION_OBJECT, KEY_MANIFEST_OBJECT, type ObjectStore, type ObjectStoreConfig } from '@lakebase/object-store';
import { openObjectStore } from './object-store.ts';

const FORMAT = 'lakebase installation 1';
const BYTES_MAX = 4096;

export interface InstallationMark {
  /** Follows from the secret. */
  readonly installation: string;
  /** Follows from the root key. */
  readonly rootKey: string;
  readonly createTime: string;
}

export const installationOf = (secret: string): string =>
  createHmac('sha256', Buffer.from(secret.trim(), 'hex')).update('lakebase-installation-v1').digest('hex').slice(0, 32);
/** `file`: content of the key file. */
export const rootKeyMark = (file: string): string =>
  createHash('sha256').update('lakebase installation root key').update(file.trim()).digest('hex').slice(0, 32);

/** `used` without a mark: an installation from before there were marks, or one whose first start ended early. */
export async function readInstallationMark(
  config: ObjectStoreConfig,
): Promise<{ readonly mark: InstallationMark | undefined; readonly used: boolean }> {
  return withStore(config, async (store) => {
    const mark = await optional(store.get(INSTALLATION_OBJECT));
    if (mark !== undefined) return { mark: decode(mark.bytes), used: true };
    return { mark: undefined, used: (await optional(store.head(KEY_MANIFEST_OBJECT))) !== undefined };
  });
}

/** Another one that came first wins. */
export async function putInstallationMark(config: ObjectStoreConfig, mark: InstallationMark): Promise<void> {
  await withStore(config, async (store) => {
    try {
      await store.put(INSTALLATION_OBJECT, Buffer.from(`${JSON.stringify({ format: FORMAT, ...mark })}\n`), { ifAbsent: true });
    } catch (error) {
      if (!isCode(error, 'ALREADY_EXISTS')) throw error;
    }
  });
}

async function withStore<T>(config: ObjectStoreConfig, work: (store: ObjectStore) => Promise<T>): Promise<T> {
  const store = await openObjectStore(config, { log: silentLogger });
  try {
    return await work(store);
  } finally {
    await store.close();
  }
}

async function optional<T>(found: Promise<T>): Promise<T | undefined> {
  try {
    return await found;
  } catch (error) {
    if (isCode(error, 'NOT_FOUND')) return undefined;
    throw error;
  }
}

function decode(bytes: Buffer): InstallationMark {
  try {
    const { format, installation, rootKey, createTime } = JSON.parse(bytes.subarray(0, BYTES_MAX).toString('utf8')) as Record<
      string,
      unknown
    >;
    if (format === FORMAT && typeof installation === 'string' && typeof rootKey === 'string')
      return { installation, rootKey, createTime: String(createTime) };
  } catch {
    // said below
  }
  throw new LakebaseError('CORRUPT', `the object ${INSTALLATION_OBJECT} does not say whose store this is`);
}
