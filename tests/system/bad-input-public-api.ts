/** Bad requests at the public API. Whatever comes, the answer is one envelope with a code and a sentence, never a stack trace, and nothing
 *  has changed. */
import assert from 'node:assert/strict';
import { it } from 'node:test';
import { internalToken, timelineScope } from '@lakebase/api';
import type { Cluster, ClusterInternals } from '@lakebase/testkit';
import { type HttpAsk, http } from './raw-client.ts';
import { API, BRANCH, type Case, TRICKS, adminToken, nested, post, refusals } from './refusals.ts';

export function publicApiCases(cluster: () => Cluster, inside: () => ClusterInternals): void {
  it('public API: no token, a forged one, an internal one, and one in the wrong place are refused', async () => {
    const { timeline, project } = inside().branch();
    const tokens = [
      undefined,
      '',
      'x',
      `${adminToken(cluster())}x`,
      adminToken(cluster()).slice(0, -1),
      internalToken(inside().secret, 'service'),
      internalToken(inside().secret, timelineScope(project, timeline)),
      'eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9.',
      `${adminToken(cluster())}' OR '1'='1`,
      'a'.repeat(8_000),
    ];
    for (const token of tokens) {
      assert.deepEqual(
        await refusals(
          cluster().httpPort,
          token,
          [
            { what: `projects with ${token?.slice(0, 40)}`, path: `${API}/projects` },
            { what: `suspend with ${token?.slice(0, 40)}`, path: `${BRANCH}/endpoints/primary/suspend`, ask: { method: 'POST' } },
          ],
          /^401$/,
        ),
        [],
      );
    }
    assert.deepEqual(
      await refusals(
        cluster().httpPort,
        undefined,
        [
          {
            what: 'basic',
            path: `${API}/projects`,
            ask: { headers: { authorization: `Basic ${Buffer.from(`token:${adminToken(cluster())}`).toString('base64')}` } },
          },
          { what: 'in the query', path: `${API}/projects?token=${adminToken(cluster())}` },
        ],
        /^401$/,
      ),
      [],
    );
  });

  it('public API: unknown ids, path tricks, wrong methods and wrong pages', async () => {
    const cases: Case[] = TRICKS.flatMap((id): Case[] => [
      { what: `project ${id}`, path: `${API}/projects/${id}` },
      { what: `delete project ${id}`, path: `${API}/projects/${id}`, ask: { method: 'DELETE' } },
      { what: `branch ${id}`, path: `${API}/projects/default/branches/${id}` },
      { what: `endpoint ${id}`, path: `${BRANCH}/endpoints/${id}` },
      { what: `role ${id}`, path: `${BRANCH}/roles/${id}` },
      { what: `database ${id}`, path: `${BRANCH}/databases/${id}`, ask: { method: 'DELETE' } },
      { what: `operation ${id}`, path: `${API}/projects/default/operations/${id}` },
      { what: `create ${id}`, path: `${API}/projects?project_id=${id}`, ask: post({ spec: {} }) },
    ]).filter((c) => !c.path.endsWith('project_id=constructor')); // a fine name
    cases.push(
      { what: 'PUT', path: `${API}/projects`, ask: post({}, 'PUT') },
      { what: 'TRACE', path: `${API}/projects`, ask: { method: 'TRACE' } },
      { what: 'DELETE of the list', path: `${API}/projects`, ask: { method: 'DELETE' } },
      { what: 'page_size text', path: `${API}/projects?page_size=many` },
      { what: 'page_size negative', path: `${API}/projects?page_size=-1` },
      { what: 'page_size 1e9', path: `${API}/projects?page_size=1000000000` },
      { what: 'page_token', path: `${API}/projects?page_token=%2e%2e%2f` },
      { what: 'page_token twice', path: `${API}/projects?page_token=a&page_token=b` },
      { what: 'a URL of 20 kB', path: `${API}/projects/${'a'.repeat(15_000)}` },
      { what: 'bad escape', path: `${API}/projects/%zz` },
      { what: 'an absolute URL', path: 'http://elsewhere/api/2.0/postgres/projects/none' },
      { what: 'no such path', path: '/../../etc/passwd' },
      { what: 'internal', path: '/internal/v1/wake', ask: post({ endpointId: 'x' }) },
    );
    assert.deepEqual(await refusals(cluster().httpPort, adminToken(cluster()), cases), []);
  });

  it('public API: bodies that are too large, too deep, of wrong types, or carry prototype keys', async () => {
    const endpoint = `${BRANCH}/endpoints/primary`;
    const settings = (pg_settings: unknown): HttpAsk => post({ spec: { settings: { pg_settings } } }, 'PATCH');
    const cases: Case[] = [
      { what: 'a long name', path: `${API}/projects?project_id=bad-one`, ask: post({ spec: { display_name: 'x'.repeat(200_000) } }) },
      { what: 'not JSON', path: `${API}/projects?project_id=bad-one`, ask: post('{"spec":') },
      { what: 'a NUL', path: `${API}/projects?project_id=bad-one`, ask: post({ spec: { display_name: 'a\u0000b' } }) },
      { what: 'half a surrogate', path: `${API}/projects?project_id=bad-one`, ask: post('{"spec":{"display_name":"\\ud800"}}') },
      { what: 'an array', path: `${API}/projects?project_id=bad-one`, ask: post([]) },
      { what: 'spec a string', path: `${API}/projects?project_id=bad-one`, ask: post({ spec: 'x' }) },
      { what: 'spec an array', path: `${API}/projects?project_id=bad-one`, ask: post({ spec: [1] }) },
      { what: 'version', path: `${API}/projects?project_id=bad-one`, ask: post({ spec: { pg_version: 99 } }) },
      { what: 'version 1e400', path: `${API}/projects?project_id=bad-one`, ask: post('{"spec":{"pg_version":1e400}}') },
      { what: 'retention', path: `${API}/projects?project_id=bad-one`, ask: post({ spec: { history_retention_duration: '-1s' } }) },
      {
        what: 'retention beyond numbers',
        path: `${API}/projects?project_id=bad-one`,
        ask: post({ spec: { history_retention_duration: `${'9'.repeat(400)}s` } }),
      },
      { what: 'xml', path: `${API}/projects?project_id=bad-one`, ask: { method: 'POST', body: '<a/>', type: 'text/xml' } },
      { what: 'exists', path: `${API}/projects?project_id=default`, ask: post({ spec: {} }) },
      { what: 'negative units', path: endpoint, ask: post({ spec: { autoscaling_limit_min_cu: -1 } }, 'PATCH') },
      { what: 'min above max', path: endpoint, ask: post({ spec: { autoscaling_limit_min_cu: 4, autoscaling_limit_max_cu: 1 } }, 'PATCH') },
      { what: 'units text', path: endpoint, ask: post({ spec: { autoscaling_limit_max_cu: 'many' } }, 'PATCH') },
      { what: 'timeout', path: endpoint, ask: post({ spec: { suspend_timeout_duration: '99999999999999s' } }, 'PATCH') },
      { what: 'timeout text', path: endpoint, ask: post({ spec: { suspend_timeout_duration: '../..' } }, 'PATCH') },
      { what: 'mask', path: `${endpoint}?update_mask=spec.__proto__`, ask: post({ spec: {} }, 'PATCH') },
      { what: 'owned setting', path: endpoint, ask: settings({ fsync: 'off' }) },
      { what: 'owned setting, other case', path: endpoint, ask: settings({ FSYNC: 'off' }) },
      { what: 'newline in a setting', path: endpoint, ask: settings({ work_mem: "4MB'\nfsync = 'on" }) },
      { what: 'setting name', path: endpoint, ask: settings({ "a = 'b'\nport": '1' }) },
      { what: 'settings text', path: endpoint, ask: settings('work_mem=1') },
      { what: 'nested setting', path: endpoint, ask: settings({ work_mem: { a: 1 } }) },
      { what: 'NUL setting', path: endpoint, ask: settings({ work_mem: '4\u0000MB' }) },
      {
        what: 'prototype setting',
        path: endpoint,
        ask: post('{"spec":{"settings":{"pg_settings":{"__proto__":{"polluted":"yes"}}}}}', 'PATCH'),
      },
      { what: 'deep setting', path: endpoint, ask: post(`{"spec":{"settings":{"pg_settings":{"a":${nested(20_000)}}}}}`, 'PATCH') },
      {
        what: 'deep defaults',
        path: `${API}/projects?project_id=bad-one`,
        ask: post(`{"spec":{"default_endpoint_settings":{"pg_settings":{"a":${nested(20_000)}}}}}`),
      },
      { what: 'role of the system', path: `${BRANCH}/roles?role_id=bad-role`, ask: post({ spec: { postgres_role: 'postgres' } }) },
      { what: 'role with a NUL', path: `${BRANCH}/roles?role_id=bad-role`, ask: post({ spec: { postgres_role: 'a\u0000' } }) },
      { what: 'role of 64 bytes', path: `${BRANCH}/roles?role_id=bad-role`, ask: post({ spec: { postgres_role: 'é'.repeat(40) } }) },
      { what: 'role of a type', path: `${BRANCH}/roles?role_id=bad-role`, ask: post({ spec: { postgres_role: {} } }) },
      {
        what: 'database of nobody',
        path: `${BRANCH}/databases?database_id=bad-db`,
        ask: post({ spec: { postgres_database: 'x', role: `${BRANCH.slice(API.length + 1)}/roles/none` } }),
      },
      {
        what: 'database, path trick',
        path: `${BRANCH}/databases?database_id=bad-db`,
        ask: post({ spec: { postgres_database: 'x', role: '../../../etc/passwd' } }),
      },
      {
        what: 'template1',
        path: `${BRANCH}/databases?database_id=bad-db`,
        ask: post({ spec: { postgres_database: 'template1', role: `${BRANCH.slice(API.length + 1)}/roles/owner` } }),
      },
      { what: 'token for nothing', path: `${API}/credentials`, ask: post({}) },
      { what: 'token for a path', path: `${API}/credentials`, ask: post({ endpoint: 'projects/../branches/../endpoints/..' }) },
      {
        what: 'token for ever',
        path: `${API}/credentials`,
        ask: post({ endpoint: `${BRANCH.slice(API.length + 1)}/endpoints/primary`, ttl: '999999s' }),
      },
      {
        what: 'token expired',
        path: `${API}/credentials`,
        ask: post({ endpoint: `${BRANCH.slice(API.length + 1)}/endpoints/primary`, expire_time: '2001-01-01T00:00:00Z' }),
      },
      {
        what: 'token at no time',
        path: `${API}/credentials`,
        ask: post({ endpoint: `${BRANCH.slice(API.length + 1)}/endpoints/primary`, expire_time: '\u0000' }),
      },
    ];
    assert.deepEqual(await refusals(cluster().httpPort, adminToken(cluster()), cases), []);
    assert.equal(({} as { polluted?: string }).polluted, undefined);
    const list = JSON.parse((await http(cluster().httpPort, `${API}/projects`, { token: adminToken(cluster()) })).text) as {
      projects: unknown[];
    };
    assert.equal(list.projects.length, 1, 'none of these made a project');
    // Unknown keys are no error here (newer clients send them); they must only change nothing.
    const odd = await http(cluster().httpPort, `${BRANCH}/endpoints/primary`, {
      token: adminToken(cluster()),
      ...post('{"__proto__":{"spec":{"disabled":true}},"constructor":{"prototype":{"disabled":true}}}', 'PATCH'),
    });
    assert.ok(odd.status < 500, odd.text);
    assert.equal(await endpointDisabled(cluster(), adminToken(cluster())), false);
  });
}

async function endpointDisabled(cluster: Cluster, token: string): Promise<boolean> {
  const answer = JSON.parse((await http(cluster.httpPort, `${BRANCH}/endpoints/primary`, { token })).text) as {
    status: { disabled?: boolean };
  };
  return answer.status.disabled === true;
}
