/** What every adapter must do, whatever the provider: run on the fakes and on independent servers alike. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import { KmsError, type KmsOutcome } from '../errors.ts';
import { checkKmsKey } from '../check.ts';
import { openKmsKey } from '../open.ts';
import type { KmsEnvironment, KmsKey, KmsKeyConfig, WrapContext } from '../types.ts';
import type { FakeFaults, KmsHarness } from './fake-kms.ts';

export const CONTEXT: WrapContext = { project: 'p-0123', account: 'acme', purpose: 'kek', kekVersion: 1 };
export const soon = (ms = 20_000): AbortSignal => AbortSignal.timeout(ms);
/** Short, so that tests of what never answers end soon. */
const QUICK: Partial<KmsEnvironment> = { attemptTimeoutMs: 4_000, attemptsMax: 2 };

export async function expectOutcome(work: Promise<unknown>, outcome: KmsOutcome, code?: RegExp): Promise<KmsError> {
  const error = await work.then(
    () => assert.fail(`expected ${outcome}`),
    (e: unknown) => e,
  );
  assert.ok(error instanceof KmsError, `expected a KmsError, got ${String(error)}`);
  assert.equal(error.outcome, outcome, error.message);
  if (code !== undefined) assert.match(error.providerCode, code);
  assert.ok(error.message.length > 20, 'the message says what to do');
  return error;
}

export interface ConformanceOptions {
  /** States that this server does not have. */
  readonly without?: readonly ('disable' | 'deletion' | 'destroy' | 'deny' | 'rotate')[];
  /** It refuses in words that are not the provider's. Nothing opens all the same, and such a refusal must not count as a denial. */
  readonly foreignErrors?: boolean;
}

export function registerKmsConformance(
  name: string,
  open: () => Promise<KmsHarness>,
  { without = [], foreignErrors = false }: ConformanceOptions = {},
): void {
  const refused: KmsOutcome = foreignErrors ? 'UNREACHABLE' : 'DENIED';
  describe(name, () => {
    let harness: KmsHarness;
    let env: KmsEnvironment;
    before(async () => {
      harness = await open();
      env = { ...harness.environment(), ...QUICK };
    });
    after(() => harness.close());

    const withKey = async (work: (key: KmsKey, config: KmsKeyConfig, kek: Buffer) => Promise<void>): Promise<void> => {
      const config = await harness.createKey();
      const key = openKmsKey(config, env);
      try {
        await work(key, config, randomBytes(32));
      } finally {
        key.close();
      }
    };
    const skip = (what: NonNullable<ConformanceOptions['without']>[number]): { skip: string | false } => ({
      skip: without.includes(what) ? 'this server has no such state' : false,
    });

    test('round trip; the blob is not the key; a check passes', () =>
      withKey(async (key, config, kek) => {
        const wrapped = await key.wrap(kek, CONTEXT, soon());
        assert.equal(wrapped.blob.includes(kek), false);
        assert.notEqual(wrapped.keyId, '');
        assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), kek);
        const check = await checkKmsKey(config, env, CONTEXT, soon());
        assert.deepEqual([check.ok, check.outcome, check.message], [true, 'OK', '']);
        // What the store gives back after a restart opens as well.
        const stored = { ...wrapped, blob: Buffer.from(wrapped.blob.toString('base64'), 'base64') };
        const reopened = openKmsKey(config, env);
        assert.deepEqual(await reopened.unwrap(stored, CONTEXT, soon()), kek);
        reopened.close();
      }));

    test('another context is denied', () =>
      withKey(async (key, _config, kek) => {
        const wrapped = await key.wrap(kek, CONTEXT, soon());
        for (const other of [{ project: 'p-9' }, { account: 'evil' }, { purpose: 'x' }, { kekVersion: 2 }])
          await expectOutcome(key.unwrap(wrapped, { ...CONTEXT, ...other }, soon()), 'DENIED');
      }));

    test('what another key wrapped, or was altered, is denied', () =>
      withKey(async (key, _config, kek) => {
        const other = openKmsKey(await harness.createKey(), env);
        const foreign = await other.wrap(kek, CONTEXT, soon());
        await expectOutcome(key.unwrap(foreign, CONTEXT, soon()), 'DENIED');
        const wrapped = await key.wrap(kek, CONTEXT, soon());
        const altered = Buffer.from(wrapped.blob);
        altered[altered.length - 8] = (altered[altered.length - 8] as number) ^ 2;
        await expectOutcome(key.unwrap({ ...wrapped, blob: altered }, CONTEXT, soon()), refused);
        await expectOutcome(key.unwrap({ ...wrapped, blob: Buffer.alloc(0) }, CONTEXT, soon()), 'DENIED');
        other.close();
      }));

    test('a KEK of another length and a bad context are refused before anything is sent', () =>
      withKey(async (key) => {
        await expectOutcome(key.wrap(randomBytes(31), CONTEXT, soon()), 'INVALID');
        await assert.rejects(key.wrap(randomBytes(32), { ...CONTEXT, project: 'a\nb' }, soon()), /printable/);
      }));

    test('after a rotation the new version wraps and the old one still unwraps', skip('rotate'), () =>
      withKey(async (key, config, kek) => {
        const old = await key.wrap(kek, CONTEXT, soon());
        const before = await key.currentVersion(soon());
        assert.equal(before, old.keyVersion);
        if (harness.provider === 'LOCAL') return;
        await harness.rotate(config.key);
        const after = await key.currentVersion(soon());
        assert.notEqual(after, before);
        assert.deepEqual(await key.unwrap(old, CONTEXT, soon()), kek);
        const renewed = await key.wrap(kek, CONTEXT, soon());
        assert.equal(renewed.keyVersion, after);
        assert.deepEqual(await key.unwrap(renewed, CONTEXT, soon()), kek);
      }),
    );

    const takenAway =
      (what: string, take: (key: string) => void | Promise<void>, giveBack: ((key: string) => void | Promise<void>) | null) => () =>
        withKey(async (key, config, kek) => {
          const wrapped = await key.wrap(kek, CONTEXT, soon());
          await take(config.key);
          const error = await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), refused);
          assert.equal(error.code, refused === 'DENIED' ? 'KEY_REVOKED' : 'UNAVAILABLE', what);
          await expectOutcome(key.wrap(kek, CONTEXT, soon()), refused);
          const check = await checkKmsKey(config, env, CONTEXT, soon());
          assert.deepEqual([check.ok, check.outcome], [false, refused]);
          if (giveBack === null) return;
          await giveBack(config.key);
          assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), kek);
        });
    test(
      'disabled, then enabled',
      skip('disable'),
      takenAway(
        'disable',
        (k) => harness.disable(k),
        (k) => harness.enable(k),
      ),
    );
    test(
      'deletion scheduled, then cancelled',
      skip('deletion'),
      takenAway(
        'deletion',
        (k) => harness.scheduleDeletion(k),
        (k) => harness.cancelDeletion(k),
      ),
    );
    test(
      'permission taken, then given',
      skip('deny'),
      takenAway(
        'deny',
        (k) => harness.deny(k),
        (k) => harness.allow(k),
      ),
    );
    test(
      'destroyed',
      skip('destroy'),
      takenAway('destroy', (k) => harness.destroy(k), null),
    );

    test('a caller that gives up gets UNREACHABLE at once', () =>
      withKey(async (key, _config, kek) => {
        await expectOutcome(key.wrap(kek, CONTEXT, AbortSignal.abort()), 'UNREACHABLE', /Timeout/);
      }));

    const broken = (faults: FakeFaults) => () =>
      withKey(async (key, config, kek) => {
        const wrapped = await key.wrap(kek, CONTEXT, soon());
        harness.setFaults?.(faults);
        try {
          await expectOutcome(key.unwrap(wrapped, CONTEXT, soon()), 'UNREACHABLE');
          await expectOutcome(key.wrap(kek, CONTEXT, soon()), 'UNREACHABLE');
          const check = await checkKmsKey(config, env, CONTEXT, soon());
          assert.equal(check.outcome, 'UNREACHABLE');
        } finally {
          harness.setFaults?.(null);
        }
        assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), kek);
      });
    const needsFaults = (): { skip: string | false } => ({
      skip: name.includes('LOCAL') || name.includes('independent') ? 'no faults to inject here' : false,
    });
    for (const kind of ['throttle', 'error500', 'reset', 'garbage', 'truncate', 'proxy403'] as const)
      test(`${kind} is unreachable, never a denial`, needsFaults(), broken({ kind }));

    test('an answer damaged on the way never becomes a key', needsFaults(), () =>
      withKey(async (key, _config, kek) => {
        const wrapped = await key.wrap(kek, CONTEXT, soon());
        harness.setFaults?.({ kind: 'corrupt' });
        try {
          await assert.rejects(key.unwrap(wrapped, CONTEXT, soon()), KmsError);
          await assert.rejects(key.wrap(kek, CONTEXT, soon()), KmsError);
        } finally {
          harness.setFaults?.(null);
        }
      }),
    );

    test('a server that never answers ends at the deadline of the caller', needsFaults(), () =>
      withKey(async (key, _config, kek) => {
        const wrapped = await key.wrap(kek, CONTEXT, soon());
        harness.setFaults?.({ kind: 'hang' });
        const start = performance.now();
        await expectOutcome(key.unwrap(wrapped, CONTEXT, soon(300)), 'UNREACHABLE', /Timeout/);
        assert.ok(performance.now() - start < 1_200);
        harness.setFaults?.(null);
        assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), kek);
      }),
    );

    test('one failure that passes is not seen by the caller', needsFaults(), () =>
      withKey(async (key, _config, kek) => {
        const wrapped = await key.wrap(kek, CONTEXT, soon());
        for (const kind of ['throttle', 'error500', 'reset'] as const) {
          harness.setFaults?.({ kind, times: 1 });
          assert.deepEqual(await key.unwrap(wrapped, CONTEXT, soon()), kek);
        }
        harness.setFaults?.(null);
      }),
    );
  });
}
