/** Whether an object store is what we need, found out by using it: before the first byte of a user is entrusted to it, and at every start. */
import { randomBytes } from 'node:crypto';
import { LakebaseError } from '@lakebase/base';
import { type ObjectStore, type ObjectStoreConfig, decorate, openBareStore } from '@lakebase/object-store';

const ATTEMPT_TIMEOUT_MS = 5_000;
const DEADLINE_MS = 15_000;

/** Throws what is wrong; CONFIG where the store ignores a condition, which would lose data later. */
export async function probeObjectStore(config: ObjectStoreConfig): Promise<void> {
  const { store } = decorate(await openBareStore(config), { attemptTimeoutMs: ATTEMPT_TIMEOUT_MS, deadlineMs: DEADLINE_MS });
  const key = `probe/${randomBytes(8).toString('hex')}`;
  const [first, second] = [randomBytes(64), randomBytes(64)];
  let there = false;
  try {
    const tag = await store.put(key, first, { ifAbsent: true });
    there = true;
    await refused(store.put(key, second, { ifAbsent: true }), 'ALREADY_EXISTS', store);
    const other = await store.put(key, second, { ifMatch: tag });
    await refused(store.put(key, first, { ifMatch: tag }), 'CONFLICT', store);
    const { bytes, tag: found } = await store.get(key, { range: { offset: 16, length: 16 } });
    if (!bytes.equals(second.subarray(16, 32)) || found !== other)
      throw new LakebaseError('CONFIG', `the object store ${store.location} does not give back what was put into it`);
    await store.delete([key]);
  } catch (error) {
    if (there) await store.delete([key]).catch(() => {});
    throw error;
  } finally {
    await store.close();
  }
}

async function refused(put: Promise<unknown>, code: 'ALREADY_EXISTS' | 'CONFLICT', store: ObjectStore): Promise<void> {
  try {
    await put;
  } catch (error) {
    if (error instanceof LakebaseError && error.code === code) return;
    throw error;
  }
  throw new LakebaseError(
    'CONFIG',
    `the object store ${store.location} ignores the conditions of writes (If-None-Match, If-Match): use a server that keeps them`,
  );
}
