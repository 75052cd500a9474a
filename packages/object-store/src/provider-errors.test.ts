/** What errors of the providers become, by the shapes their SDKs give them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type ErrorCode, LakebaseError } from '@lakebase/base';
import { AZURE_ERRORS, azureError } from './azure-errors.ts';
import { GCS_ERRORS, gcsError } from './gcs-errors.ts';
import { S3_ERRORS, s3Error } from './s3-errors.ts';

/** The codes of object-store.ts, and UNSUPPORTED for a server that cannot do what is needed. */
const CODES: readonly ErrorCode[] = [
  'NOT_FOUND',
  'ALREADY_EXISTS',
  'CONFLICT',
  'INVALID_ARGUMENT',
  'PERMISSION_DENIED',
  'RESOURCE_EXHAUSTED',
  'UNAVAILABLE',
  'CORRUPT',
  'UNSUPPORTED',
];

const named = (name: string, properties: object, message = 'said the server'): Error =>
  Object.assign(new Error(message), { name, ...properties });
const s3 = (name: string, httpStatusCode: number): Error => named(name, { $metadata: { httpStatusCode } });
const azure = (code: string | undefined, statusCode: number): Error => named('RestError', { code, statusCode });
const gcs = (code: number | string, reason?: string, message?: string): Error =>
  named('Error', { code, ...(reason === undefined ? {} : { errors: [{ reason }] }) }, message);

test('every error of a table has one of our codes and says what to do', () => {
  for (const table of [S3_ERRORS, AZURE_ERRORS, GCS_ERRORS])
    for (const [name, [code, text]] of Object.entries(table)) {
      assert.ok(CODES.includes(code), `${name}: ${code}`);
      assert.ok(text.length > 8, name);
    }
});

test('all tables are reached through the shape of the SDK', () => {
  for (const [name, [code]] of Object.entries(S3_ERRORS)) assert.equal(s3Error(s3(name, 418), 'x').code, code, name);
  for (const [name, [code]] of Object.entries(AZURE_ERRORS)) {
    assert.equal(azureError(azure(name, 418), 'x').code, code, name);
    assert.equal(azureError(named('RestError', { details: { errorCode: name }, statusCode: 418 }), 'x').code, code, `${name} of a HEAD`);
  }
  for (const [name, [code]] of Object.entries(GCS_ERRORS)) assert.equal(gcsError(gcs(418, name), 'x').code, code, name);
});

const CASES: readonly [string, LakebaseError, ErrorCode][] = [
  ['S3: no key', s3Error(s3('NoSuchKey', 404), 'x'), 'NOT_FOUND'],
  ['S3: a 404 without a code', s3Error(s3('NotFound', 404), 'x'), 'UNAVAILABLE'],
  ['S3: a 404 of something in between is no absence', s3Error(s3('UnknownError', 404), 'x'), 'UNAVAILABLE'],
  ['S3: unknown 5xx', s3Error(s3('Whatever', 502), 'x'), 'UNAVAILABLE'],
  ['S3: unknown 4xx', s3Error(s3('Whatever', 403), 'x'), 'PERMISSION_DENIED'],
  ['S3: 429 without a code', s3Error(s3('Whatever', 429), 'x'), 'RESOURCE_EXHAUSTED'],
  ['S3: 412 without a code', s3Error(s3('Whatever', 412), 'x'), 'CONFLICT'],
  ['S3: reset', s3Error(named('Error', { code: 'ECONNRESET' }), 'x'), 'UNAVAILABLE'],
  ['S3: no name', s3Error(named('Error', { code: 'ENOTFOUND' }), 'x'), 'UNAVAILABLE'],
  ['S3: timeout', s3Error(named('TimeoutError', {}), 'x'), 'UNAVAILABLE'],
  ['S3: checksum', s3Error(new Error('Checksum mismatch: expected "a" but received "b"'), 'x'), 'CORRUPT'],
  ['S3: no credentials', s3Error(named('CredentialsProviderError', {}), 'x'), 'PERMISSION_DENIED'],
  [
    'S3: credentials, network',
    s3Error(named('CredentialsProviderError', { cause: named('Error', { code: 'ETIMEDOUT' }) }), 'x'),
    'UNAVAILABLE',
  ],
  ['S3: not an error at all', s3Error(undefined, 'x'), 'UNAVAILABLE'],
  ['Azure: a 404 of something in between is no absence', azureError(azure(undefined, 404), 'x'), 'UNAVAILABLE'],
  ['Azure: 503', azureError(azure('ServerBusy', 503), 'x'), 'RESOURCE_EXHAUSTED'],
  ['Azure: unknown 500', azureError(azure('Whatever', 500), 'x'), 'UNAVAILABLE'],
  [
    'Azure: refused',
    azureError(named('RestError', { code: 'REQUEST_SEND_ERROR', cause: named('Error', { code: 'ECONNREFUSED' }) }), 'x'),
    'UNAVAILABLE',
  ],
  ['Azure: unknown 400', azureError(azure('Whatever', 400), 'x'), 'INVALID_ARGUMENT'],
  ['Azure: aborted', azureError(named('AbortError', {}), 'x'), 'UNAVAILABLE'],
  ['GCS: object', gcsError(gcs(404, 'notFound', 'No such object: b/o'), 'x'), 'NOT_FOUND'],
  ['GCS: bucket', gcsError(gcs(404, 'notFound', 'The specified bucket does not exist.'), 'x'), 'UNAVAILABLE'],
  ['GCS: precondition', gcsError(gcs(412), 'x'), 'CONFLICT'],
  ['GCS: 429', gcsError(gcs(429), 'x'), 'RESOURCE_EXHAUSTED'],
  ['GCS: throttled by 403', gcsError(gcs(403, 'userRateLimitExceeded'), 'x'), 'RESOURCE_EXHAUSTED'],
  ['GCS: damaged body', gcsError(gcs(400, 'invalid', 'Provided MD5 hash "x" doesn\'t match calculated MD5 hash "y".'), 'x'), 'UNAVAILABLE'],
  ['GCS: 503', gcsError(gcs(503), 'x'), 'UNAVAILABLE'],
  ['GCS: reset', gcsError(gcs('ECONNRESET'), 'x'), 'UNAVAILABLE'],
  ['GCS: no credentials', gcsError(new Error('Could not load the default credentials.'), 'x'), 'PERMISSION_DENIED'],
];
for (const [name, error, code] of CASES) test(name, () => assert.equal(error.code, code, error.message));

test('our own errors stay what they are', () => {
  const own = new LakebaseError('CONFIG', 'a file of credentials');
  for (const classify of [s3Error, azureError, gcsError]) assert.equal(classify(own, 'x'), own);
});
