/** Google Cloud KMS against fake-cloud-kms, which checks CRCs and binds the context, behind a bridge of ours from REST to its gRPC service. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { type KmsEnvironment, KmsError, openKmsKey } from '@lakebase/kms';
import { CONTEXT, GoogleGrpcBridge, anonymousGoogle, expectOutcome, soon } from '@lakebase/kms/testing';
import { CACHE, type RunningServer, findProgram, startServer } from './servers.ts';

const program = findProgram('fake-cloud-kms', 'bin');
const RING = 'projects/interop/locations/global/keyRings/ring';

if (program === null) {
  test('Google Cloud KMS on fake-cloud-kms', {
    skip: `fake-cloud-kms is not here; get it with (Go 1.25 or newer): git clone https://github.com/winor30/fake-cloud-kms ${CACHE}/gcp-fake && (cd ${CACHE}/gcp-fake && go build -o ${CACHE}/bin/fake-cloud-kms ./cmd/fake-cloud-kms)`,
  });
} else {
  describe('Google Cloud KMS on fake-cloud-kms', () => {
    let server: RunningServer;
    let bridge: GoogleGrpcBridge;
    let env: KmsEnvironment;
    const kek = randomBytes(32);
    const post = async (path: string, body: unknown): Promise<{ name: string }> => {
      const response = await fetch(`${bridge.url}/v1/${path}`, { method: 'POST', body: JSON.stringify(body) });
      assert.ok(response.ok, `${path}: ${response.status} ${await response.clone().text()}`);
      return (await response.json()) as { name: string };
    };
    const createKey = async (): Promise<string> => {
      const name = `key-${randomBytes(4).toString('hex')}`;
      await post(`${RING}/cryptoKeys?cryptoKeyId=${name}`, { purpose: 'ENCRYPT_DECRYPT' });
      return `${RING}/cryptoKeys/${name}`;
    };
    before(async () => {
      server = await startServer(program, (port) => ['-grpc-listen-addr', `127.0.0.1:${port}`], 'port');
      bridge = await new GoogleGrpcBridge(server.url).listen();
      env = {
        rootKeyPath: '/nonexistent/root.key',
        attemptTimeoutMs: 10_000,
        attemptsMax: 1,
        endpoints: { GCP_KMS: bridge.url },
        credentials: { google: anonymousGoogle() },
      };
      await post('projects/interop/locations/global/keyRings?keyRingId=ring', {});
    });
    after(async () => {
      await bridge?.close();
      await server?.stop();
    });

    test('wraps and unwraps with confirmed CRCs, and again after a rotation', async () => {
      const name = await createKey();
      const key = openKmsKey({ provider: 'GCP_KMS', key: name }, env);
      const wrapped = await key.wrap(kek, CONTEXT, soon());
      assert.equal(wrapped.keyVersion, '1');
      assert.equal(await key.currentVersion(soon()), '1');
      const next = await post(`${name}/cryptoKeyVersions`, {});
      await post(`${name}:updatePrimaryVersion`, { cryptoKeyVersionId: next.name.split('/').pop() });
      assert.equal(await key.currentVersion(soon()), '2');
      assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), kek);
      assert.equal((await key.wrap(kek, CONTEXT, soon())).keyVersion, '2');
      key.close();
    });

    test('another context and altered bytes do not open; another key and one that is not there are denied', async () => {
      const key = openKmsKey({ provider: 'GCP_KMS', key: await createKey() }, env);
      const other = openKmsKey({ provider: 'GCP_KMS', key: await createKey() }, env);
      const wrapped = await key.wrap(kek, CONTEXT, soon());
      // This fake says INTERNAL where Google says INVALID_ARGUMENT, so only the refusal can be seen here.
      await assert.rejects(key.unwrap(wrapped, { ...CONTEXT, project: 'other' }, soon()), KmsError);
      const altered = Buffer.from(wrapped.blob);
      altered[altered.length - 1] = (altered[altered.length - 1] as number) ^ 1;
      await assert.rejects(key.unwrap({ ...wrapped, blob: altered }, CONTEXT, soon()), KmsError);
      await expectOutcome(other.unwrap(wrapped, CONTEXT, soon()), 'DENIED', /FAILED_PRECONDITION/);
      const missing = openKmsKey({ provider: 'GCP_KMS', key: `${RING}/cryptoKeys/none` }, env);
      await expectOutcome(missing.wrap(kek, CONTEXT, soon()), 'DENIED', /NOT_FOUND/);
      for (const opened of [key, other, missing]) opened.close();
    });
  });
}
