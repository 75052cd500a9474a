/** Bad requests at the internal HTTP listeners, and bad HTTP at all of them: who has no right learns and changes nothing, who has it gets a
 *  refusal that says what is wrong. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { internalToken, timelineScope } from '@lakebase/api';
import { newProjectUid, newTimelineId } from '@lakebase/ids';
import type { Cluster, ClusterInternals } from '@lakebase/testkit';
import { type HttpAsk, http, tell } from './raw-client.ts';
import { API, type Case, TRICKS, adminToken, nested, portOf, post, refusals } from './refusals.ts';

export function internalHttpCases(cluster: () => Cluster, inside: () => ClusterInternals): void {
  it("internal HTTP of every service: no token, forged, the administrator's, another timeline's: nothing is told and nothing done", async () => {
    const { project, timeline } = inside().branch();
    const { secret } = inside();
    const other = internalToken(secret, timelineScope(newProjectUid(), newTimelineId()));
    const swapped = internalToken(secret, timelineScope(timeline, project));
    const forged = internalToken(Buffer.alloc(32).toString('hex'), 'service');
    const own = `/v1/timelines/${project}/${timeline}`;
    const surfaces: Record<string, Case[]> = {
      sk1: [
        { what: 'status', path: own },
        { what: 'delete', path: own, ask: { method: 'DELETE' } },
        { what: 'vote', path: `${own}/vote`, ask: post({ term: 1_000_000 }) },
        { what: 'peers', path: '/v1/peer-stream' },
        {
          what: 'subscribe',
          path: `${own}/subscribe`,
          ask: post({ term: 1_000_000, host: '/tmp', port: 1, user: 'x', standbyName: 'sk1' }),
        },
      ],
      pageserver: [
        { what: 'status', path: own },
        { what: 'delete', path: own, ask: { method: 'DELETE' } },
        { what: 'checkpoint', path: `${own}/checkpoint`, ask: post({}) },
        { what: 'template', path: '/v1/templates/18' },
        { what: 'suspend state', path: `${own}/suspend-state`, ask: { method: 'PUT', body: 'x', type: 'application/octet-stream' } },
      ],
      compute: [
        { what: 'list', path: '/v1/computes' },
        { what: 'start', path: '/v1/computes/bad', ask: post({}, 'PUT') },
        { what: 'stop', path: '/v1/computes/bad/stop', ask: post({ mode: 'fast' }) },
      ],
      manager: [
        { what: 'resolve', path: '/internal/v1/resolve', ask: post({ endpoint: null }) },
        { what: 'wake', path: '/internal/v1/wake', ask: post({ endpointId: 'ep-x' }) },
      ],
      proxy: [{ what: 'anything', path: '/v1/sessions' }],
    };
    for (const [service, cases] of Object.entries(surfaces))
      for (const token of [undefined, '', forged, other, swapped, adminToken(cluster()), 'service'])
        assert.deepEqual(
          await refusals(portOf(cluster(), service), token, cases, service === 'proxy' ? /^(401|404)$/ : /^401$/),
          [],
          service,
        );
    // A compute's own token opens its timeline for what a compute does, not for destroying or making it.
    const mine = internalToken(secret, timelineScope(project, timeline));
    for (const service of ['sk1', 'pageserver'])
      assert.deepEqual(
        await refusals(
          portOf(cluster(), service),
          mine,
          [
            { what: 'delete', path: own, ask: { method: 'DELETE' } },
            { what: 'create', path: own, ask: post({ systemId: '1', pgVersion: 18, startLsn: '0/0', prevRecordLsn: '0/0' }, 'PUT') },
          ],
          /^401$/,
        ),
        [],
        service,
      );
  });

  it('internal HTTP of every service: path tricks, unknown ids, wrong shapes, impossible numbers', async () => {
    const service = internalToken(inside().secret, 'service');
    const { project, timeline } = inside().branch();
    const own = `/v1/timelines/${project}/${timeline}`;
    const unknown = `/v1/timelines/${newProjectUid()}/${newTimelineId()}`;
    const ids = TRICKS.filter((id) => id !== '..').flatMap((id): Case[] => [
      { what: `project ${id}`, path: `/v1/timelines/${id}/${timeline}` },
      { what: `timeline ${id}`, path: `/v1/timelines/${project}/${id}` },
      { what: `delete ${id}`, path: `/v1/timelines/${id}/${id}`, ask: { method: 'DELETE' } },
      { what: `upper case ${id}`, path: `/v1/timelines/${project.toUpperCase()}x/${id}` },
    ]);
    const create = { systemId: '1', pgVersion: 180_000, startLsn: '0/1000000', prevRecordLsn: '0/0' };
    const bodies = (path: string, method: string, values: readonly unknown[]): Case[] =>
      values.map((v) => ({ what: `${method} ${path} ${JSON.stringify(v).slice(0, 80)}`, path, ask: post(v, method) }));
    const safekeeper: Case[] = [
      ...ids,
      { what: 'unknown', path: unknown },
      { what: 'vote of unknown', path: `${unknown}/vote`, ask: post({ term: 5 }) },
      ...bodies(unknown, 'PUT', [
        {},
        [],
        'x',
        { ...create, systemId: '-1' },
        { ...create, startLsn: 'FFFFFFFF/FFFFFFFF' },
        { ...create, startLsn: '../x' },
        { ...create, startLsn: 5 },
        { ...create, pgVersion: 1e99 },
        { ...create, systemId: '99999999999999999999' },
      ]),
      ...bodies(`${own}/vote`, 'POST', [{}, { term: 0 }, { term: -1 }, { term: 1.5 }, { term: 2 ** 60 }, { term: '7' }, { term: null }]),
      ...bodies(`${own}/elected`, 'POST', [
        {},
        {
          term: 9,
          termStartLsn: 'x',
          lastRecordLsn: '0/0',
          termHistory: [],
          donor: { id: 'sk2', httpUrl: '', pgHost: '', pgPort: 1 },
          voters: [],
        },
      ]),
      ...bodies(`${own}/subscribe`, 'POST', [
        {},
        { term: 1, host: '', port: 1, user: 'x', standbyName: 'x' },
        { term: 1, host: 'h', port: 70_000, user: 'x', standbyName: 'x' },
        { term: 1, host: 'h', port: 1, user: 'x', standbyName: '"; DROP' },
      ]),
      { what: 'replayed vote', path: `${own}/subscribe`, ask: post({ term: 0, host: 'h', port: 1, user: 'x', standbyName: 'x' }) },
      { what: 'deep', path: `${own}/vote`, ask: post(nested(10_000)) },
      { what: 'text', path: `${own}/vote`, ask: { method: 'POST', body: 'x', type: 'text/plain' } },
    ];
    assert.deepEqual(await refusals(portOf(cluster(), 'sk1'), service, safekeeper), []);
    const before = await inside().safekeeper('sk1').status(project, timeline);
    for (const term of [1, before.term]) {
      const replayed = JSON.parse((await http(portOf(cluster(), 'sk1'), `${own}/vote`, { token: service, ...post({ term }) })).text) as {
        granted: boolean;
      };
      assert.equal(replayed.granted, false, 'a vote that was given is not given again');
    }
    assert.deepEqual(
      (await inside().safekeeper('sk1').status(project, timeline)).streaming,
      { term: before.term },
      'and the stream goes on',
    );
    const bytes = (body: Buffer): HttpAsk => ({ method: 'PUT', body, type: 'application/octet-stream' });
    const pageserver: Case[] = [
      ...ids,
      { what: 'unknown', path: unknown },
      { what: 'checkpoint of unknown', path: `${unknown}/checkpoint`, ask: post({}) },
      ...bodies(unknown, 'PUT', [
        {},
        [],
        { pgVersion: 18, systemId: '99999999999999999999', safekeepers: [] },
        { pgVersion: 18, systemId: '1', safekeepers: [{ id: 'x' }] },
        { pgVersion: 18, systemId: '1', safekeepers: [], __proto__: 1, more: 1 },
      ]),
      { what: 'template of ..', path: '/v1/templates/%2e%2e' },
      { what: 'template of 99', path: '/v1/templates/99', ask: bytes(Buffer.from('x')) },
      {
        what: 'template of no tar',
        path: '/v1/templates/18',
        ask: { method: 'PUT', body: Buffer.alloc(2_048, 7), type: 'application/x-tar' },
        expect: /^[45]\d\d$/,
      },
      {
        what: 'template cut short',
        path: '/v1/templates/18',
        ask: { method: 'PUT', body: Buffer.alloc(100, 7), type: 'application/x-tar' },
        expect: /^[45]\d\d$/,
      },
      ...[Buffer.alloc(0), Buffer.alloc(8), Buffer.from('LBSS'), Buffer.alloc(100_000, 0xff)].flatMap((b, i): Case[] => [
        { what: `suspend state ${i}`, path: `${own}/suspend-state`, ask: bytes(b), expect: /^(400|500)$/ },
        { what: `boot set ${i}`, path: `${own}/boot-set`, ask: bytes(b), expect: /^(400|500)$/ },
      ]),
      { what: 'suspend state as JSON', path: `${own}/suspend-state`, ask: post({}, 'PUT') },
    ];
    assert.deepEqual(await refusals(portOf(cluster(), 'pageserver'), service, pageserver), []);
    const spec = { ...(await inside().rivalSpec()), projectUid: '../../..', timelineId: 'x' };
    const compute: Case[] = [
      ...TRICKS.filter((id) => id !== '..').map((id): Case => ({ what: `compute ${id}`, path: `/v1/computes/${id}` })),
      ...TRICKS.filter((id) => !['..', 'constructor'].includes(id)).map(
        (id): Case => ({ what: `start ${id}`, path: `/v1/computes/${id}`, ask: post(spec, 'PUT') }),
      ),
      ...bodies('/v1/computes/bad-shape', 'PUT', [
        {},
        [],
        { ...spec, endpointId: '../x' },
        { ...spec, safekeepers: [] },
        { ...spec, roles: [{ name: '' }] },
        { ...spec, settings: { a: {} } },
      ]),
      { what: 'ids that are none', path: '/v1/computes/bad-ids', ask: post(spec, 'PUT') },
      { what: 'change of unknown', path: '/v1/computes/none', ask: post({ settings: {} }, 'PATCH') },
      { what: 'role of unknown', path: '/v1/computes/none/roles/%2e%2e' },
      { what: 'stop how', path: '/v1/computes/none/stop', ask: post({ mode: 'later' }) },
    ];
    assert.deepEqual(await refusals(portOf(cluster(), 'compute'), service, compute), []);
    const manager: Case[] = ['resolve', 'role', 'token', 'wake']
      .flatMap((verb) => [
        ...bodies(`/internal/v1/${verb}`, 'POST', [
          [],
          'x',
          { endpoint: 7, endpointId: 7 },
          { endpoint: '../..', endpointId: '../..', role: 'x', token: 'x' },
          { endpoint: 'x'.repeat(200), endpointId: 'x'.repeat(200), role: 'x' },
          { endpoint: 'a\u0000', endpointId: 'a\u0000', role: 'a\u0000', token: 'a\u0000' },
        ]),
      ])
      .filter((c) => !(c.path.endsWith('token') && /endpoint/.test(c.what)));
    assert.deepEqual(await refusals(cluster().httpPort, service, manager), []);
  });

  it('a body beyond the limit of its route is refused by its announced length, before any of it is read', async () => {
    const service = internalToken(inside().secret, 'service');
    const { project, timeline } = inside().branch();
    const routes: [service: string, line: string, token: string, bytes: number][] = [
      ['manager', `POST ${API}/projects?project_id=bad-one`, adminToken(cluster()), 300_000],
      ['manager', 'POST /internal/v1/resolve', service, 300_000],
      ['sk1', `POST /v1/timelines/${project}/${timeline}/vote`, service, 17_000_000],
      ['pageserver', `PUT /v1/timelines/${project}/${timeline}`, service, 2_000_000],
      ['compute', 'PUT /v1/computes/too-large', service, 100_000_000],
    ];
    for (const [name, line, token, bytes] of routes) {
      const said = (
        await tell(
          { port: portOf(cluster(), name) },
          `${line} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${token}\r\nContent-Type: application/json\r\nContent-Length: ${bytes}\r\nConnection: close\r\n\r\n{`,
        )
      ).toString();
      assert.match(said, /^HTTP\/1\.1 413 [\s\S]*"error_code"/, `${name}: ${said.slice(0, 200)}`);
    }
  });

  it('HTTP framing: lying lengths, two lengths, endless headers, half a request: refused or closed, at every listener', async () => {
    for (const service of ['sk1', 'pageserver', 'compute', 'manager', 'proxy']) {
      const port = portOf(cluster(), service);
      const head = (lines: readonly string[]): string =>
        `POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n${lines.join('\r\n')}\r\n\r\n`;
      const cases: [string, string][] = [
        ['a length beyond all limits', head(['Content-Length: 999999999999999', 'Connection: close'])],
        ['a negative length', head(['Content-Length: -5'])],
        ['a length that is none', head(['Content-Length: 0x10'])],
        ['two lengths', head(['Content-Length: 2', 'Content-Length: 20'])],
        ['length and chunks', head(['Content-Length: 2', 'Transfer-Encoding: chunked'])],
        ['a bad chunk', `${head(['Transfer-Encoding: chunked', 'Connection: close'])}zz\r\n`],
        ['20 kB of headers', head([`X: ${'x'.repeat(20_000)}`])],
        ['no HTTP', '\u0000\u0001\u0002\u0003\r\n\r\n'],
        ['a Postgres client', '\u0000\u0000\u0000\u0008\u0004\u00d2\u0016\u002f'],
      ];
      for (const [what, text] of cases) {
        const said = (await tell({ port }, Buffer.from(text, 'latin1'))).toString();
        assert.match(said, /^(HTTP\/1\.1 (4\d\d|50[15])|$)/, `${service}: ${what}: ${said.slice(0, 80)}`);
      }
    }
  });
}
