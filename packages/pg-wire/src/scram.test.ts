import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import fc from 'fast-check';
import {
  ProtocolError,
  SCRAM_SHA_256,
  SCRAM_SHA_256_PLUS,
  ScramClient,
  ScramServer,
  type ScramVerifier,
  buildVerifier,
  formatVerifier,
  mockVerifier,
  normalizePassword,
  parseVerifier,
} from './index.ts';

/** RFC 7677, section 3: user "user", password "pencil". */
const RFC = {
  clientNonce: 'rOprNGfwEbeRWgbNEkqO',
  serverNonce: '%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0',
  salt: Buffer.from('W22ZaJ0SNY7soEsUEjb6gQ==', 'base64'),
  clientFirst: 'n,,n=user,r=rOprNGfwEbeRWgbNEkqO',
  serverFirst: 'r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096',
  clientFinal: 'c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=',
  serverFinal: 'v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=',
};
const rfcVerifier = (): Promise<ScramVerifier> => buildVerifier('pencil', { salt: RFC.salt, iterations: 4096 });

async function exchange(server: ScramServer, password: string): Promise<{ matched: number } | undefined> {
  const client = new ScramClient(password);
  const final = await client.continue(server.first(SCRAM_SHA_256, client.first()));
  const outcome = server.final(final);
  if (outcome !== undefined) client.verify(outcome.serverFinal);
  assert.equal(client.finished, outcome !== undefined);
  return outcome;
}

describe('SCRAM-SHA-256', () => {
  it('matches the exchange of RFC 7677 on both sides', async () => {
    const client = new ScramClient('pencil', { user: 'user', nonce: RFC.clientNonce });
    assert.equal(client.first(), RFC.clientFirst);
    assert.equal(await client.continue(RFC.serverFirst), RFC.clientFinal);
    client.verify(RFC.serverFinal);
    assert.equal(client.finished, true);
    const server = new ScramServer({ verifiers: [await rfcVerifier()], nonce: RFC.serverNonce });
    assert.equal(server.first(SCRAM_SHA_256, RFC.clientFirst), RFC.serverFirst);
    assert.deepEqual(server.final(RFC.clientFinal), { matched: 0, serverFinal: RFC.serverFinal });
  });

  it('accepts the right password and no other, and never a mock verifier', async () => {
    const verifier = await buildVerifier('right', { iterations: 100 });
    assert.deepEqual((await exchange(new ScramServer({ verifiers: [verifier] }), 'right'))?.matched, 0);
    assert.equal(await exchange(new ScramServer({ verifiers: [verifier] }), 'Right'), undefined);
    const mock = mockVerifier(Buffer.from('secret'), 'bob');
    assert.deepEqual(mock.salt, mockVerifier(Buffer.from('secret'), 'bob').salt);
    assert.notDeepEqual(mock.salt, mockVerifier(Buffer.from('secret'), 'alice').salt);
    assert.equal(await exchange(new ScramServer({ verifiers: [mock] }), ''), undefined);
  });

  it('tries several candidates of one salt', async () => {
    const salt = Buffer.alloc(16, 1);
    const verifiers = await Promise.all(['a', 'b', 'c'].map((p) => buildVerifier(p, { salt, iterations: 10 })));
    assert.equal((await exchange(new ScramServer({ verifiers }), 'b'))?.matched, 1);
    assert.throws(() => new ScramServer({ verifiers: [...verifiers, mockVerifier(Buffer.alloc(1), 'x')] }), TypeError);
  });

  it('binds to the TLS channel when both can, and notices a removed offer', async () => {
    const verifier = await rfcVerifier();
    const binding = Buffer.alloc(32, 5);
    const make = (): ScramServer => new ScramServer({ verifiers: [verifier], endpointBinding: binding });
    assert.deepEqual(make().mechanisms, [SCRAM_SHA_256_PLUS, SCRAM_SHA_256]);
    const header = 'p=tls-server-end-point,,';
    for (const [data, ok] of [
      [binding, true],
      [Buffer.alloc(32, 6), false],
    ] as const) {
      const server = make();
      const first = server.first(SCRAM_SHA_256_PLUS, `${header}n=,r=abc`);
      const nonce = /r=([^,]*)/.exec(first)?.[1];
      const final = `c=${Buffer.concat([Buffer.from(header), data]).toString('base64')},r=${nonce},p=${Buffer.alloc(32).toString('base64')}`;
      if (ok) assert.equal(server.final(final), undefined);
      else assert.throws(() => server.final(final), /channel binding check failed/);
    }
    assert.throws(() => make().first(SCRAM_SHA_256, 'y,,n=,r=abc'), /did not see the server offer/);
    assert.throws(() => new ScramServer({ verifiers: [verifier] }).first(SCRAM_SHA_256_PLUS, `${header}n=,r=abc`), ProtocolError);
    assert.throws(() => make().first(SCRAM_SHA_256, `${header}n=,r=abc`), ProtocolError);
    assert.throws(() => make().first(SCRAM_SHA_256_PLUS, 'p=tls-unique,,n=,r=abc'), ProtocolError);
    new ScramServer({ verifiers: [verifier] }).first(SCRAM_SHA_256, 'y,,n=,r=abc');
  });

  it('refuses malformed messages and steps out of order', async () => {
    const verifier = await rfcVerifier();
    const make = (): ScramServer => new ScramServer({ verifiers: [verifier], nonce: RFC.serverNonce });
    for (const first of [
      '',
      'n',
      'n,,',
      'n,,n=',
      'n,,n=,r=',
      'n,,r=abc',
      'n,a=admin,n=,r=abc',
      'n,,m=x,n=,r=abc',
      `n,,n=,r=${'x'.repeat(600)}`,
      'n,,n=,r=a b',
      'x'.repeat(9_000),
    ])
      assert.throws(() => make().first(SCRAM_SHA_256, first), ProtocolError, first.slice(0, 40));
    assert.throws(() => make().final(RFC.clientFinal), ProtocolError);
    for (const final of [
      '',
      'p=',
      RFC.clientFinal.replace('biws', 'eSws'),
      RFC.clientFinal.replace('rOp', 'rOq'),
      RFC.clientFinal.slice(0, -1),
      RFC.clientFinal.replace('dHzb', 'dH,b'),
    ]) {
      const server = make();
      server.first(SCRAM_SHA_256, RFC.clientFirst);
      assert.throws(() => server.final(final), ProtocolError, final);
      assert.throws(() => server.final(RFC.clientFinal), ProtocolError);
    }
    const client = (): ScramClient => {
      const c = new ScramClient('pencil', { user: 'user', nonce: RFC.clientNonce });
      c.first();
      return c;
    };
    for (const first of [
      '',
      'r=x,s=AA==,i=1',
      `r=${RFC.clientNonce},s=AA==,i=1`,
      RFC.serverFirst.replace('4096', '0'),
      RFC.serverFirst.replace('4096', '99999999'),
      RFC.serverFirst.replace('4096', 'x'),
      RFC.serverFirst.replace('W22', '!22'),
    ])
      await assert.rejects(client().continue(first), ProtocolError, first);
    const c = client();
    await c.continue(RFC.serverFirst);
    assert.throws(() => c.verify('v=AAAA'), ProtocolError);
    const e = client();
    await e.continue(RFC.serverFirst);
    assert.throws(() => e.verify('e=other-error'), /other-error/);
  });

  it('survives any text', async () => {
    const verifier = await rfcVerifier();
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.constantFrom('', 'n,,', 'n,,n=,r=', 'y,,n='), (text, prefix) => {
        const server = new ScramServer({ verifiers: [verifier] });
        try {
          server.first(SCRAM_SHA_256, prefix + text);
          server.final(text);
        } catch (error) {
          assert.ok(error instanceof ProtocolError);
        }
      }),
    );
  });
});

describe('verifiers', () => {
  it('have the text form of pg_authid', async () => {
    const v = await rfcVerifier();
    const text = formatVerifier(v);
    assert.match(
      text,
      /^SCRAM-SHA-256\$4096:W22ZaJ0SNY7soEsUEjb6gQ==\$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=$/,
    );
    assert.deepEqual(parseVerifier(text), v);
    for (const bad of [
      '',
      'md5abc',
      text.slice(1),
      text.slice(0, -1),
      text.replace('4096', '0'),
      text.replace('4096', '9999999999'),
      text.replace('$W', '$!'),
      `${text}=`,
      text.replace('W22', '=22'),
      `${text}\n`,
    ])
      assert.throws(
        () => parseVerifier(bad),
        (e) => e instanceof LakebaseError && e.code === 'INVALID_ARGUMENT',
        bad,
      );
  });

  it('use SASLprep where it applies and the raw password where not', async () => {
    assert.equal(await normalizePassword('plain ASCII ~'), 'plain ASCII ~');
    assert.equal(await normalizePassword('I\u00adX'), 'IX');
    assert.equal(await normalizePassword('\u2168'), 'IX');
    assert.equal(await normalizePassword('\u0007bell'), '\u0007bell');
    assert.equal(await normalizePassword('\u0627\u0031'), '\u0627\u0031');
  });
});
