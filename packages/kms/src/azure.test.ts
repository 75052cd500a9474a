import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { AZURE_ERRORS } from './azure-errors.ts';
import { openKmsKey } from './open.ts';
import { CONTEXT, expectOutcome, soon } from './testing/conformance.ts';
import { FakeAzureVault, selfSigned } from './testing/index.ts';
import { KEK, withOpenedKey } from './testing/opened-key.ts';

const STATUS = { DENIED: 403, UNREACHABLE: 503, INVALID: 400, UNAUTHENTICATED: 401 } as const;
/** Not on the wire: classes of @azure/identity, and cases of our own. */
const CLIENT_SIDE = new Set([
  'AuthenticationError',
  'AggregateAuthenticationError',
  'AuthenticationRequiredError',
  'CredentialUnavailableError',
  'ContextMismatch',
  'UnwrapFailed',
  'KeyTypeNotSupported',
]);

describe('Azure Key Vault', () => {
  const fake = new FakeAzureVault('RSA');
  const opened = withOpenedKey(fake);

  for (const [code, [meaning]] of Object.entries(AZURE_ERRORS).filter(([name]) => !CLIENT_SIDE.has(name)))
    test(`${code} on the wire is ${meaning}`, async () => {
      const outcome = meaning === 'UNAUTHENTICATED' ? 'UNREACHABLE' : meaning;
      fake.setFaults({ answer: fake.error(STATUS[meaning], code) });
      const error = await expectOutcome(opened.wrap(), outcome, new RegExp(`^${code}$`));
      assert.equal(error.transient, meaning === 'UNREACHABLE');
      fake.setFaults({ answer: fake.error(STATUS[meaning], 'Outer', code) });
      await expectOutcome(opened.wrap(), outcome, new RegExp(`^Outer/${code}$`));
      fake.setFaults(null);
    });

  for (const name of ['AuthenticationError', 'AggregateAuthenticationError', 'AuthenticationRequiredError', 'CredentialUnavailableError'])
    test(`${name} of the login is unreachable and not tried again`, async () => {
      const tls = new FakeAzureVault('RSA', selfSigned());
      await tls.listen();
      const failing = { getToken: () => Promise.reject(Object.assign(new Error('no'), { name })) };
      const other = openKmsKey(tls.createKey(), { ...tls.environment(), credentials: { azure: failing }, attemptsMax: 3 });
      const error = await expectOutcome(other.wrap(KEK, CONTEXT, soon()), 'UNREACHABLE', new RegExp(name));
      assert.equal(error.transient, false);
      other.close();
      await tls.close();
    });

  test('over TLS the challenge is answered with a token, once', async () => {
    const tls = new FakeAzureVault('RSA', selfSigned());
    await tls.listen();
    const other = openKmsKey(tls.createKey(), { ...tls.environment(), attemptTimeoutMs: 8_000 });
    const first = await other.wrap(KEK, CONTEXT, soon());
    assert.equal(tls.calls.filter((c) => c.status === 401).length, 1);
    assert.deepEqual(await other.unwrap(first, CONTEXT, soon()), KEK);
    assert.equal(tls.calls.filter((c) => c.status === 401).length, 1);
    tls.tokensRefused = true;
    await expectOutcome(other.unwrap(first, CONTEXT, soon()), 'UNREACHABLE', /Unauthorized/);
    other.close();
    await tls.close();
  });

  test("a server whose certificate we don't trust is unreachable", async () => {
    const tls = new FakeAzureVault('RSA', selfSigned());
    await tls.listen();
    const { caCertificates: _, ...untrusting } = tls.environment();
    const other = openKmsKey(tls.createKey(), { ...untrusting, attemptsMax: 1 });
    await expectOutcome(other.wrap(KEK, CONTEXT, soon()), 'UNREACHABLE', /SELF_SIGNED_CERT/);
    other.close();
    await tls.close();
  });

  test('an expired or not yet valid key is denied, and works again when its dates change', async () => {
    const now = Date.now() / 1_000;
    fake.expires = now - 10;
    await expectOutcome(opened.unwrap(), 'DENIED', /KeyExpired/);
    await expectOutcome(opened.wrap(), 'DENIED', /KeyExpired/);
    fake.expires = now + 1_000;
    assert.deepEqual(await opened.unwrap(), KEK);
    fake.notBefore = now + 500;
    await expectOutcome(opened.unwrap(), 'DENIED', /KeyNotYetValid/);
    fake.notBefore = undefined;
    fake.expires = undefined;
    assert.deepEqual(await opened.unwrap(), KEK);
  });

  test('key operations and key types that cannot wrap are invalid', async () => {
    fake.keyOperations = ['sign', 'verify'];
    await expectOutcome(opened.wrap(), 'INVALID', /KeyOperationForbidden/);
    fake.keyOperations = ['wrapKey', 'unwrapKey'];
    const curve = await new FakeAzureVault('EC').listen();
    const other = openKmsKey(curve.createKey(), curve.environment());
    await expectOutcome(other.wrap(KEK, CONTEXT, soon()), 'INVALID', /KeyTypeNotSupported/);
    other.close();
    await curve.close();
  });

  test('wrapping is done by the vault, under the version that is stored', async () => {
    const calls = fake.calls.length;
    const again = await opened.wrap();
    assert.ok(fake.calls.slice(calls).some((c) => c.operation === 'POST wrapkey'));
    assert.equal(again.algorithm, 'RSA-OAEP-256');
    assert.equal(again.keyId, `${opened.config.key}/${again.keyVersion}`);
    // A URL with a version stays with it.
    const pinned = openKmsKey({ ...opened.config, key: again.keyId }, opened.env);
    fake.rotate(opened.config.key);
    assert.equal((await pinned.wrap(KEK, CONTEXT, soon())).keyVersion, again.keyVersion);
    assert.notEqual((await opened.wrap()).keyVersion, again.keyVersion);
    pinned.close();
  });

  test('unwrap needs no permission to get; wrap says that it does', async () => {
    fake.getDenied = true;
    assert.deepEqual(await opened.unwrap(), KEK);
    const error = await expectOutcome(opened.wrap(), 'DENIED', /ForbiddenByRbac/);
    assert.match(error.message, /Crypto Service Encryption User/);
    fake.getDenied = false;
  });

  test('what is stored is checked before it is used in an address', async () => {
    for (const keyVersion of ['', '../../secrets/x', 'a b'])
      await expectOutcome(opened.key.unwrap({ ...opened.wrapped, keyVersion }, CONTEXT, soon()), 'DENIED');
    await expectOutcome(
      opened.key.unwrap({ ...opened.wrapped, keyId: 'https://other.vault.azure.net/keys/k/1' }, CONTEXT, soon()),
      'DENIED',
    );
    await expectOutcome(opened.key.unwrap({ ...opened.wrapped, algorithm: 'RSA1_5' }, CONTEXT, soon()), 'DENIED');
  });
});
