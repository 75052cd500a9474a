/** What is shown of every object store on a server of others: the conformance suite, bare and with the decorators, large files in parts, a bucket that
 *  is not there, wrong credentials, and that nothing is lost when the answers are. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { type ObjectStoreConfig, decorate, openBareStore } from '@lakebase/object-store';
import { type ConformanceOptions, FaultStore, bytesOf, createBucket, registerStoreConformance } from '@lakebase/object-store/testing';
import type { RunningServer } from './servers.ts';

export interface StoreServer {
  readonly server: RunningServer;
  readonly config: ObjectStoreConfig;
}

export interface StoreInteropOptions extends ConformanceOptions {
  readonly start: () => Promise<StoreServer>;
  readonly wrongBucket: (config: ObjectStoreConfig) => ObjectStoreConfig;
  /** Or why the server does not care. */
  readonly wrongCredentials: ((config: ObjectStoreConfig) => ObjectStoreConfig) | string;
}

const MIB = 1024 * 1024;
/** Parts as small as S3 takes. */
const SIZES = { singleBytesMax: 6 * MIB, partBytes: 5 * MIB };

export function storeInterop(name: string, options: StoreInteropOptions): void {
  describe(name, () => {
    let running: StoreServer;
    const dir = mkdtempSync(join(tmpdir(), 'lb-interop-store-'));
    before(async () => {
      running = await options.start();
      await createBucket(running.config);
    });
    after(async () => {
      await running?.server.stop();
      rmSync(dir, { recursive: true, force: true });
    });

    registerStoreConformance(name, () => openBareStore(running.config, SIZES), { largeBytes: 12 * MIB + 1, ...options });
    registerStoreConformance(`${name}, decorated`, async () => decorate(await openBareStore(running.config), {}).store, options);

    test('a bucket that is not there is not an object that is not there', async () => {
      const store = await openBareStore(options.wrongBucket(running.config));
      for (const call of [() => store.get('a'), () => store.head('a'), () => store.stream('a'), () => store.put('a', Buffer.from('x'))])
        await assert.rejects(call, (e: unknown) => isCode(e, 'UNAVAILABLE') && /create it/.test(e.message));
      await store.close();
    });

    const { wrongCredentials } = options;
    test('wrong credentials are refused, at once', { skip: typeof wrongCredentials === 'string' ? wrongCredentials : false }, async () => {
      if (typeof wrongCredentials === 'string') return;
      const { store } = decorate(await openBareStore(wrongCredentials(running.config)), {});
      await assert.rejects(store.get('a'), (e: unknown) => isCode(e, 'PERMISSION_DENIED'));
      await assert.rejects(store.put('a', Buffer.from('x')), (e: unknown) => isCode(e, 'PERMISSION_DENIED'));
      await store.close();
    });

    test('nothing is lost under faults, and conditional puts know their own writes', async () => {
      const faulty = new FaultStore(await openBareStore(running.config), {
        seed: 7,
        errors: 0.1,
        throttled: 0.1,
        lostResponses: 0.3,
        truncated: 0.2,
      });
      const { store } = decorate(faulty, { baseMs: 1, maxMs: 20, writesMax: 4 });
      const bodies = Array.from({ length: 40 }, (_, i) => randomBytes(1 + i * 500));
      await Promise.all(bodies.map((body, i) => store.put(`faults/${i}`, body, { ifAbsent: true })));
      for (const [i, body] of bodies.entries()) {
        const { bytes, tag } = await store.get(`faults/${i}`);
        assert.ok(bytes.equals(body));
        await store.put(`faults/${i}`, body.subarray(1), { ifMatch: tag });
        assert.ok((await bytesOf((await store.stream(`faults/${i}`)).body)).equals(body.subarray(1)));
      }
      assert.ok(faulty.injected.lostResponses > 5 && faulty.injected.truncated > 5, JSON.stringify(faulty.injected));
      await store.close();
    });

    test('a large file, up and down', async () => {
      const store = await openBareStore(running.config, SIZES);
      const path = join(dir, 'large');
      const bytes = randomBytes(40 * MIB);
      writeFileSync(path, bytes);
      const started = performance.now();
      await store.put('large', { path, size: bytes.length }, { ifAbsent: true });
      const up = performance.now();
      const hash = createHash('sha256');
      for await (const chunk of (await store.stream('large')).body as AsyncIterable<Buffer>) hash.update(chunk);
      const down = performance.now();
      assert.equal(hash.digest('hex'), createHash('sha256').update(bytes).digest('hex'));
      console.log(`${name}: 40 MiB up ${Math.round(40_000 / (up - started))} MiB/s, down ${Math.round(40_000 / (down - up))} MiB/s`);
      await store.delete(['large', ...Array.from({ length: 40 }, (_, i) => `faults/${i}`)]);
      assert.deepEqual((await store.list('faults/')).objects, []);
      await store.close();
    });
  });
}
