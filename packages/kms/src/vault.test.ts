import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { KmsOutcome } from './errors.ts';
import { openKmsKey } from './open.ts';
import { CONTEXT, expectOutcome, soon } from './testing/conformance.ts';
import { FakeVault, selfSigned } from './testing/index.ts';
import { KEK, withOpenedKey } from './testing/opened-key.ts';
import { VAULT_ERRORS, VaultAnswer, vaultError } from './vault-errors.ts';
import { VaultTokens } from './vault-login.ts';

/** One sample of each row of the table, in the words of Vault. */
const SAMPLES: readonly (readonly [status: number, text: string, code: string, outcome: KmsOutcome])[] = [
  [400, 'encryption key not found', 'KeyNotFound', 'DENIED'],
  [400, 'ciphertext or signature version is disallowed by policy (too old)', 'VersionTooOld', 'DENIED'],
  [
    400,
    'requested version for encryption is less than the minimum encryption key version; version is disallowed',
    'VersionDisallowed',
    'DENIED',
  ],
  [400, 'cipher: message authentication failed', 'WrongContext', 'DENIED'],
  [400, 'invalid ciphertext: no prefix', 'InvalidCiphertext', 'DENIED'],
  [400, 'transit key is soft-deleted', 'KeySoftDeleted', 'DENIED'],
  [400, "missing 'context' for key derivation; the key was created using a derived key", 'KeyDerived', 'INVALID'],
  [400, 'associated_data supplied for a cipher that does not support it', 'KeyType', 'INVALID'],
  [400, 'missing client token', 'TokenMissing', 'UNREACHABLE'],
  [400, 'invalid role or secret ID', 'LoginRefused', 'UNREACHABLE'],
  [401, 'unauthorized', 'Unauthorized', 'UNREACHABLE'],
  [403, 'permission denied; invalid token', 'InvalidToken', 'UNREACHABLE'],
  [403, 'namespace not authorized', 'NamespaceDenied', 'DENIED'],
  [403, 'permission denied', 'PermissionDenied', 'DENIED'],
  [404, 'no handler for route "transit/decrypt/k". route entry not found.', 'NotFound', 'DENIED'],
  [405, 'unsupported operation', 'UnsupportedOperation', 'INVALID'],
  [412, 'required index state not present', 'StaleReplica', 'UNREACHABLE'],
  [429, 'rate limit quota exceeded', 'RateLimited', 'UNREACHABLE'],
  [472, '', 'RecoveryReplica', 'UNREACHABLE'],
  [473, '', 'PerformanceStandby', 'UNREACHABLE'],
  [500, 'internal error', 'InternalError', 'UNREACHABLE'],
  [501, 'not initialized', 'NotInitialized', 'UNREACHABLE'],
  [502, 'bad gateway', 'BadGateway', 'UNREACHABLE'],
  [503, 'Vault is sealed', 'Sealed', 'UNREACHABLE'],
  [503, 'busy', 'Unavailable', 'UNREACHABLE'],
  [504, 'timeout', 'GatewayTimeout', 'UNREACHABLE'],
];

describe('Vault transit', () => {
  const fake = new FakeVault();
  const opened = withOpenedKey(fake);

  test('every row of the table has a sample', () => {
    assert.deepEqual(
      SAMPLES.map(([, , code]) => code),
      VAULT_ERRORS.map(([, , code]) => code),
    );
  });
  for (const [status, text, code, outcome] of SAMPLES)
    test(`${status} ${text.slice(0, 40)} is ${outcome}`, async () => {
      const error = vaultError(new VaultAnswer(status, text === '' ? [] : [text]));
      assert.deepEqual([error.outcome, error.providerCode], [outcome, code]);
      if (status === 403) return;
      fake.setFaults({ answer: fake.error(status, ...(text === '' ? [] : [text])) });
      await expectOutcome(opened.unwrap(), outcome, new RegExp(code));
      fake.setFaults(null);
    });

  test('a 404 with an empty list, as reading a missing key gives, is a denial; one of a proxy is not', async () => {
    fake.setFaults({ answer: fake.error(404) });
    await expectOutcome(opened.unwrap(), 'DENIED', /NotFound/);
    for (const status of [400, 403, 404]) {
      fake.setFaults({ answer: { status, body: '<html>' } });
      await expectOutcome(opened.unwrap(), 'UNREACHABLE', /BadAnswer/);
    }
    fake.setFaults(null);
  });

  test('wrap never makes a key', async () => {
    fake.mayCreate = true;
    const none = openKmsKey({ ...opened.config, key: 'transit/none' }, opened.env);
    await expectOutcome(none.wrap(KEK, CONTEXT, soon()), 'DENIED', /NotFound/);
    assert.throws(() => fake.find('none'));
    none.close();
    fake.mayCreate = false;
  });

  test('a standby that redirects is not followed: the token stays where it was meant to go', async () => {
    fake.setFaults({ answer: { status: 307, headers: { location: 'http://127.0.0.1:1/' }, body: '' } });
    await expectOutcome(opened.unwrap(), 'UNREACHABLE', /Redirected/);
    fake.setFaults(null);
  });

  test('raising min_decryption_version revokes, sealing does not', async () => {
    fake.rotate(opened.config.key);
    fake.minDecryptionVersion = 2;
    await expectOutcome(opened.unwrap(), 'DENIED', /VersionTooOld/);
    fake.minDecryptionVersion = 1;
    fake.sealed = true;
    await expectOutcome(opened.unwrap(), 'UNREACHABLE', /Sealed/);
    fake.sealed = false;
    fake.mountRemoved = true;
    await expectOutcome(opened.unwrap(), 'DENIED', /NotFound/);
    fake.mountRemoved = false;
    assert.deepEqual(await opened.unwrap(), KEK);
  });

  test('a 403 with a good token is a denial, with a lost one it is our login', async () => {
    fake.deny(opened.config.key);
    await expectOutcome(opened.unwrap(), 'DENIED', /PermissionDenied/);
    fake.allow(opened.config.key);
    fake.tokens.delete('fake-token');
    const error = await expectOutcome(opened.unwrap(), 'UNREACHABLE', /InvalidToken/);
    assert.equal(error.transient, false);
    fake.tokens.set('fake-token', 0);
    assert.deepEqual(await opened.unwrap(), KEK);
  });

  test('AppRole logs in, and again when its token is lost; a refused login is not a denial', async () => {
    const options = { address: fake.url, roleId: 'fake-role', secretId: 'fake-secret' };
    const role = openKmsKey({ ...opened.config, options }, opened.env);
    assert.deepEqual(await role.unwrap(opened.wrapped, CONTEXT, soon()), KEK);
    for (const token of [...fake.tokens.keys()]) if (token.startsWith('hvs.')) fake.tokens.delete(token);
    assert.deepEqual(await role.unwrap(opened.wrapped, CONTEXT, soon()), KEK);
    role.close();
    const wrong = openKmsKey({ ...opened.config, options: { ...options, secretId: 'x' } }, opened.env);
    await expectOutcome(wrong.unwrap(opened.wrapped, CONTEXT, soon()), 'UNREACHABLE', /LoginRefused/);
    wrong.close();
  });

  test('an authority of our own is trusted', async () => {
    const tls = await new FakeVault(selfSigned()).listen();
    const own = tls.createKey();
    const trusting = openKmsKey(own, tls.environment());
    await trusting.wrap(KEK, CONTEXT, soon());
    trusting.close();
    const stranger = openKmsKey(own, { rootKeyPath: '/x', attemptsMax: 1 });
    await expectOutcome(stranger.wrap(KEK, CONTEXT, soon()), 'UNREACHABLE', /SELF_SIGNED_CERT/);
    stranger.close();
    await tls.close();
  });
});

describe('tokens of Vault', () => {
  const answer = (token: string, seconds: number): unknown => ({ auth: { client_token: token, lease_duration: seconds } });
  test('are renewed at half of their life, one renewal at a time, and replaced by a login when they cannot be', async () => {
    let now = 0;
    const sent: string[] = [];
    let renewable = true;
    const tokens = new VaultTokens(
      { kind: 'approle', mount: 'approle', roleId: 'r', secretId: 's' },
      (_method, path) => {
        sent.push(path);
        if (path === 'auth/approle/login') return Promise.resolve(answer(`t${sent.length}`, 100));
        return renewable ? Promise.resolve(answer('t1', 100)) : Promise.reject(new VaultAnswer(403, ['permission denied']));
      },
      () => now,
    );
    assert.deepEqual(await Promise.all([tokens.get(soon()), tokens.get(soon())]), ['t1', 't1']);
    assert.deepEqual(sent, ['auth/approle/login']);
    now = 49_000;
    await tokens.get(soon());
    assert.equal(sent.length, 1);
    now = 51_000;
    assert.equal(await tokens.get(soon()), 't1');
    assert.deepEqual(sent.slice(1), ['auth/token/renew-self']);
    now = 102_000;
    renewable = false;
    assert.equal(await tokens.get(soon()), 't4');
    assert.deepEqual(sent.slice(2), ['auth/token/renew-self', 'auth/approle/login']);
  });

  test('a given token that may not look itself up, or cannot be renewed, is used as it is', async () => {
    const tokens = new VaultTokens({ kind: 'token', token: 'given' }, () => Promise.reject(new VaultAnswer(403, ['permission denied'])));
    assert.equal(await tokens.get(soon()), 'given');
    let now = 0;
    const ending = new VaultTokens(
      { kind: 'token', token: 'given' },
      (_m, path) =>
        path.endsWith('lookup-self')
          ? Promise.resolve({ data: { ttl: 10, renewable: true } })
          : Promise.reject(new VaultAnswer(400, ['lease is not renewable'])),
      () => now,
    );
    assert.equal(await ending.get(soon()), 'given');
    now = 6_000;
    assert.equal(await ending.get(soon()), 'given');
  });
});
