import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type Lsn, lsn } from '@lakebase/ids';
import fc from 'fast-check';
import {
  ProtocolError,
  decodeBackend,
  decodeFrontend,
  decodePassword,
  decodeReplicationFromClient,
  decodeReplicationFromServer,
  decodeSaslInitialResponse,
  decodeSaslResponse,
  encodeAuthenticationCleartext,
  encodeAuthenticationOk,
  encodeAuthenticationSasl,
  encodeAuthenticationSaslContinue,
  encodeAuthenticationSaslFinal,
  encodeBackendKeyData,
  encodeCommandComplete,
  encodeCopyBothResponse,
  encodeCopyData,
  encodeCopyDone,
  encodeCopyFail,
  encodeDataRow,
  encodeEmptyQueryResponse,
  encodeError,
  encodeKeepalive,
  encodeNotice,
  encodeParameterStatus,
  encodePassword,
  encodeQuery,
  encodeReadyForQuery,
  encodeRowDescription,
  encodeSaslInitialResponse,
  encodeSaslResponse,
  encodeStandbyStatus,
  encodeSync,
  encodeTerminate,
  encodeXLogData,
  textColumn,
} from './index.ts';

const fields = { severity: 'FATAL', sqlstate: '57P01', message: 'gone', detail: 'because', hint: 'try again' } as const;
const at = (text: number): Lsn => lsn(text);

/** Encoded message, and what it must decode to. */
const BACKEND: readonly (readonly [Buffer, object])[] = [
  [encodeAuthenticationOk(), { kind: 'authenticationOk' }],
  [encodeAuthenticationCleartext(), { kind: 'authenticationCleartext' }],
  [encodeAuthenticationSasl(['A', 'B']), { kind: 'authenticationSasl', mechanisms: ['A', 'B'] }],
  [encodeAuthenticationSaslContinue('r=1'), { kind: 'authenticationSaslContinue', data: Buffer.from('r=1') }],
  [encodeAuthenticationSaslFinal('v=1'), { kind: 'authenticationSaslFinal', data: Buffer.from('v=1') }],
  [encodeParameterStatus('a', 'ü'), { kind: 'parameterStatus', name: 'a', value: 'ü' }],
  [encodeBackendKeyData(-1, Buffer.alloc(256, 1)), { kind: 'backendKeyData', pid: -1, key: Buffer.alloc(256, 1) }],
  [encodeReadyForQuery('T'), { kind: 'readyForQuery', status: 'T' }],
  [encodeError(fields), { kind: 'error', fields }],
  [
    encodeNotice({ severity: 'NOTICE', sqlstate: '00000', message: 'm' }),
    { kind: 'notice', fields: { severity: 'NOTICE', sqlstate: '00000', message: 'm', detail: undefined, hint: undefined } },
  ],
  [
    encodeRowDescription([textColumn('x'), { name: 'n', typeOid: 23, typeSize: 4 }]),
    { kind: 'rowDescription', columns: [textColumn('x'), { name: 'n', typeOid: 23, typeSize: 4 }] },
  ],
  [encodeDataRow(['a', null, '']), { kind: 'dataRow', values: [Buffer.from('a'), null, Buffer.from('')] }],
  [encodeCommandComplete('SELECT 1'), { kind: 'commandComplete', tag: 'SELECT 1' }],
  [encodeEmptyQueryResponse(), { kind: 'emptyQuery' }],
  [encodeCopyBothResponse(), { kind: 'copyBoth', columns: 0 }],
  [encodeCopyData(Buffer.from('x')), { kind: 'copyData', data: Buffer.from('x') }],
  [encodeCopyDone(), { kind: 'copyDone' }],
];
const FRONTEND: readonly (readonly [Buffer, object])[] = [
  [encodeQuery('select ü'), { kind: 'query', sql: 'select ü' }],
  [encodeTerminate(), { kind: 'terminate' }],
  [encodeSync(), { kind: 'sync' }],
  [encodeCopyData(Buffer.from('x')), { kind: 'copyData', data: Buffer.from('x') }],
  [encodeCopyDone(), { kind: 'copyDone' }],
  [encodeCopyFail('why'), { kind: 'copyFail', reason: 'why' }],
];
const SERVER_REPLICATION: readonly (readonly [Buffer, object])[] = [
  [
    encodeXLogData(at(0x1_0000_0008), at(0x1_0000_0010), Buffer.from('wal'), -5),
    { kind: 'xlogData', start: 0x1_0000_0008, walEnd: 0x1_0000_0010, sentAt: -5, data: Buffer.from('wal') },
  ],
  [
    encodeKeepalive(at(77), true, 123_456_789_012_345),
    { kind: 'keepalive', walEnd: 77, sentAt: 123_456_789_012_345, replyRequested: true },
  ],
];
const CLIENT_REPLICATION: readonly (readonly [Buffer, object])[] = [
  [
    encodeStandbyStatus({ write: at(3), flush: at(2), apply: at(1), replyRequested: true }, 9),
    { kind: 'standbyStatus', write: 3, flush: 2, apply: 1, sentAt: 9, replyRequested: true },
  ],
];

const backend = (bytes: Buffer): unknown => decodeBackend(bytes[0] as number, bytes.subarray(5));
const frontend = (bytes: Buffer): unknown => decodeFrontend(bytes[0] as number, bytes.subarray(5));
const fromServer = (bytes: Buffer): unknown => decodeReplicationFromServer(bytes.subarray(5));
const fromClient = (bytes: Buffer): unknown => decodeReplicationFromClient(bytes.subarray(5));
const CODECS = [
  ['backend', backend, BACKEND],
  ['frontend', frontend, FRONTEND],
  ['replication from the server', fromServer, SERVER_REPLICATION],
  ['replication from the client', fromClient, CLIENT_REPLICATION],
] as const;

for (const [name, decode, samples] of CODECS) {
  describe(`${name} messages`, () => {
    it('come back as they went, with a length that fits', () => {
      for (const [bytes, value] of samples) {
        assert.equal(bytes.readInt32BE(1), bytes.length - 1);
        assert.deepEqual(decode(bytes), value);
      }
    });

    it('cut short or padded, are refused with a ProtocolError or are another legal message', () => {
      for (const [bytes] of samples)
        for (let n = 5; n <= bytes.length + 1; n++) {
          const cut = n <= bytes.length ? bytes.subarray(0, n) : Buffer.concat([bytes, Buffer.alloc(1)]);
          try {
            decode(cut);
          } catch (error) {
            assert.ok(error instanceof ProtocolError, String(error));
          }
        }
    });

    it('mutated, give a value or a ProtocolError', () => {
      fc.assert(
        fc.property(
          fc.nat(samples.length - 1),
          fc.array(fc.tuple(fc.nat(500), fc.nat(255)), { minLength: 1, maxLength: 5 }),
          fc.nat(40),
          (i, edits, extra) => {
            const bytes = Buffer.concat([(samples[i] as (typeof samples)[number])[0], Buffer.alloc(extra, 0xff)]);
            for (const [where, value] of edits) bytes[where % bytes.length] = value;
            try {
              decode(bytes);
            } catch (error) {
              assert.ok(error instanceof ProtocolError, String(error));
            }
          },
        ),
        { numRuns: 1_000 },
      );
    });
  });
}

describe('bounds', () => {
  it('refuse counts that cannot fit before making room for them', () => {
    assert.throws(() => decodeBackend(0x54, Buffer.from('ffff', 'hex')), /65535 columns do not fit/);
    assert.throws(() => decodeBackend(0x44, Buffer.from('ffff', 'hex')), /65535 values do not fit/);
    assert.throws(() => decodeBackend(0x44, Buffer.from('0001fffffffe', 'hex')), /value of length -2/);
    assert.throws(() => decodeBackend(0x76, Buffer.from('0003000200ffffff', 'hex')), ProtocolError);
    assert.throws(() => decodeBackend(0x4b, Buffer.alloc(4 + 257)), /cancel key of 257 bytes/);
    assert.throws(() => decodeReplicationFromServer(Buffer.concat([Buffer.from('w'), Buffer.alloc(24, 0xff)])), ProtocolError);
  });

  it('keep NUL out of strings', () => {
    assert.throws(() => encodeQuery('a\0b'), TypeError);
    assert.throws(() => encodePassword('a\0b'), TypeError);
    assert.deepEqual(backend(encodeError({ severity: 'ERROR', sqlstate: '22000', message: 'a\0b' })), {
      kind: 'error',
      fields: { severity: 'ERROR', sqlstate: '22000', message: 'a b', detail: undefined, hint: undefined },
    });
    assert.throws(
      () => decodeFrontend(0x51, Buffer.from([0xff, 0])),
      (e) => e instanceof ProtocolError && e.sqlstate === '22021',
    );
  });
});

describe('password messages', () => {
  const body = (b: Buffer): Buffer => b.subarray(5);
  it('carry passwords and SASL data', () => {
    assert.equal(decodePassword(0x70, body(encodePassword('sécret'))), 'sécret');
    assert.deepEqual(decodeSaslInitialResponse(0x70, body(encodeSaslInitialResponse('M', 'data'))), { mechanism: 'M', data: 'data' });
    assert.equal(decodeSaslResponse(0x70, body(encodeSaslResponse('r=x'))), 'r=x');
    for (const decode of [decodePassword, decodeSaslInitialResponse, decodeSaslResponse])
      assert.throws(() => decode(0x51, Buffer.from('x\0')), ProtocolError);
    assert.throws(() => decodeSaslInitialResponse(0x70, Buffer.from('4d000000ffff', 'hex')), ProtocolError);
    assert.throws(() => decodePassword(0x70, Buffer.from('no end')), ProtocolError);
  });
});
