/** Every provider's real SDK under the real service, a fake of the provider's wire protocol at the far end: bound, revoked, ridden out,
 *  rotated, and back. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { type KeyState, KeyManagerClient, internalToken } from '@lakebase/api';
import { silentLogger } from '@lakebase/base';
import type { ProjectUid } from '@lakebase/ids';
import { type KmsEnvironment, openKmsKey } from '@lakebase/kms';
import { FakeAwsKms, FakeAzureVault, FakeGoogleKms, type FakeKms, FakeVault } from '@lakebase/kms/testing';
import { parseConfig } from '@lakebase/service-kit';
import { keyManagerConfig } from './config.ts';
import { startKeyManager } from './server.ts';

const P = 'f'.repeat(32) as ProjectUid;
const SECRET = 'cd'.repeat(32);
const fakes: readonly (() => FakeKms)[] = [
  () => new FakeAwsKms(),
  () => new FakeAzureVault(),
  () => new FakeGoogleKms(),
  () => new FakeVault(),
];

for (const make of fakes) {
  const fake = make();
  it(`${fake.provider}: from binding to shredding`, async () => {
    const dir = mkdtempSync(join(tmpdir(), 'lb-kmp-'));
    await fake.listen();
    const raw = { id: 'keymanager', httpPort: 0, secretFile: '', dataDir: join(dir, 'data'), rootKeyFile: join(dir, 'root.key') };
    const config = parseConfig(keyManagerConfig, { ...raw, probeIntervalMs: 3_600_000, probeTimeoutMs: 8_000 }, 'test');
    const env: KmsEnvironment = { ...fake.environment(), rootKeyPath: config.rootKeyFile, attemptTimeoutMs: 2_500, attemptsMax: 1 };
    const server = await startKeyManager(config, SECRET, silentLogger, { open: (key) => openKmsKey(key, env) });
    try {
      const client = new KeyManagerClient({ baseUrl: `http://127.0.0.1:${server.httpPort}`, token: internalToken(SECRET, 'service') });
      const account = 'acc';
      const probe = async (): Promise<KeyState> => (await client.probe(P)).state;
      // From the root key to the customer's, as an existing project is moved.
      await client.createProject(P, { account, configurationId: null, kms: { provider: 'LOCAL', key: 'root' }, actor: 'admin' });
      const [fresh] = await client.deks(P, 1);
      const kms = fake.createKey('one');
      assert.equal((await client.check({ account, kms, actor: 'admin' })).outcome, 'OK');
      await client.rebind(P, { account, configurationId: 'cfg', kms, actor: 'admin' });
      assert.equal(await probe(), 'ACTIVE');

      fake.disable('one');
      const refused = await client.check({ account, kms, actor: 'admin' });
      assert.equal(refused.outcome, 'DENIED', refused.message);
      assert.equal(await probe(), 'REVOKED');
      await assert.rejects(client.unwrap(P, [fresh?.reference as Buffer]), { code: 'KEY_REVOKED' });
      fake.setFaults({ kind: 'error500' });
      assert.equal(await probe(), 'REVOKED');
      fake.setFaults(null);
      fake.enable('one');
      assert.equal(await probe(), 'ACTIVE');
      for (const kind of ['throttle', 'error500', 'hang', 'reset', 'garbage'] as const) {
        fake.setFaults({ kind });
        assert.equal(await probe(), 'UNREACHABLE', kind);
      }
      fake.setFaults(null);
      assert.equal(await probe(), 'ACTIVE');
      fake.deny('one');
      assert.equal(await probe(), 'REVOKED');
      fake.allow('one');
      assert.equal(await probe(), 'ACTIVE');

      fake.rotate('one');
      await client.rewrapKek(P, 'admin');
      await client.rotate(P, 'admin');
      assert.deepEqual(await client.unwrap(P, [fresh?.reference as Buffer]), [fresh?.dek]);
      const report = await client.shred(P, 'admin');
      assert.equal(report.destroyedKeks.length, 2);
    } finally {
      await server.close();
      await fake.close();
      rmSync(dir, { recursive: true });
    }
  });
}
