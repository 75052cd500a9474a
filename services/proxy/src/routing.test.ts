import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { PgError, type StartupMessage, decodeStartupPacket, encodeStartupMessage } from '@lakebase/pg-wire';
import { cutName, endpointFromSni, extractEndpoint, parseClientRequest } from './routing.ts';

const startup = (parameters: Record<string, string>): StartupMessage =>
  decodeStartupPacket(encodeStartupMessage(Object.entries(parameters))) as StartupMessage;

describe('routing', () => {
  it('takes the endpoint out of options, however it is written, and leaves the rest alone', () => {
    for (const written of ['endpoint=ep-1', '-c endpoint=ep-1', '-cendpoint=ep-1', '--endpoint=ep-1']) {
      assert.deepEqual(extractEndpoint(written), { endpoint: 'ep-1', rest: '' });
      assert.deepEqual(extractEndpoint(`-c search_path=a\\ b ${written} --geqo=off`), {
        endpoint: 'ep-1',
        rest: '-c search_path=a\\ b --geqo=off',
      });
    }
    assert.deepEqual(extractEndpoint(' -c  odd\tspacing=1 '), { endpoint: null, rest: ' -c  odd\tspacing=1 ' });
    assert.deepEqual(extractEndpoint('-c application_name=endpoint'), { endpoint: null, rest: '-c application_name=endpoint' });
    for (const bad of ['endpoint=', `endpoint=${'x'.repeat(129)}`]) assert.throws(() => extractEndpoint(bad), PgError);
  });

  it('reads the first label of an SNI name that can mean an endpoint', () => {
    for (const [name, domain, want] of [
      ['ep-1.db.example.com', null, 'ep-1'],
      ['EP-1.DB.example.com.', 'db.example.com', 'ep-1'],
      ['ep-1.other.com', 'db.example.com', null],
      ['ep-1.x.db.example.com', 'db.example.com', null],
      ['localhost', null, null],
      ['127.0.0.1', null, null],
      ['::1', null, null],
      ['.x', null, null],
      ['', null, null],
      [undefined, null, null],
    ] as const)
      assert.equal(endpointFromSni(name, domain), want, String(name));
  });

  it('passes everything else on, names cut as the server cuts them', () => {
    const r = parseClientRequest(startup({ user: 'ü'.repeat(40), database: 'd'.repeat(70), options: 'endpoint=e', DateStyle: 'ISO' }));
    assert.equal(r.role, 'ü'.repeat(31));
    assert.deepEqual(r.parameters, [
      ['user', r.role],
      ['database', 'd'.repeat(63)],
      ['DateStyle', 'ISO'],
    ]);
    assert.equal(cutName('a'.repeat(62) + 'ü'), 'a'.repeat(62));
    assert.throws(() => parseClientRequest(startup({ database: 'x' })), PgError);
  });

  it('sees replication however it is asked for', () => {
    for (const [value, want] of [
      ['database', 'logical'],
      ['DATABASE', 'logical'],
      ['true', 'physical'],
      ['on', 'physical'],
      ['1', 'physical'],
      ['t', 'physical'],
      ['y', 'physical'],
      ['nonsense', 'physical'],
      ['false', 'none'],
      ['f', 'none'],
      ['off', 'none'],
      ['of', 'none'],
      ['no', 'none'],
      ['0', 'none'],
      ['o', 'physical'],
    ] as const)
      assert.equal(parseClientRequest(startup({ user: 'a', replication: value })).replication, want, value);
  });
});
