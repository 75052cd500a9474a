/** Who may call what, for every route there is: the list is the published description of the API, so a new route is in it by itself. Two powers: an
 *  account token reaches keys, workspaces and users and no project; a workspace token reaches projects and no key; neither reaches /internal. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { type Json, type RunningManager, TestBed } from './testing/test-manager.ts';

const ACCOUNT = 'accounts/default';
const METHODS = ['get', 'post', 'put', 'patch', 'delete'];
/** Who one is, for both. */
const OF_BOTH = new Set(['get /api/2.0/preview/scim/v2/Me']);

interface Route {
  readonly name: string;
  readonly method: string;
  /** Below /api/2.0/, with something for each parameter. */
  readonly path: string;
  readonly ofAccount: boolean;
}

let bed: TestBed;
let m: RunningManager;
let routes: readonly Route[];
let accountToken: string;
let workspaceToken: string;

before(async () => {
  bed = await TestBed.create();
  m = await bed.manager(bed.config(await bed.newDatabase()));
  const { paths } = (await (await fetch(`${m.baseUrl}/openapi.json`)).json()) as { paths: Record<string, Json> };
  routes = Object.entries(paths).flatMap(([path, operations]) =>
    Object.keys(operations)
      .filter((method) => METHODS.includes(method))
      .map((method) => ({
        name: `${method} ${path}`,
        method: method.toUpperCase(),
        path: path
          .replace('/api/2.0/', '')
          .replace('{account}', 'default')
          .replaceAll(/\{[^}]+\}/g, '1'),
        ofAccount: path.startsWith('/api/2.0/accounts/'),
      })),
  );
  const call = async (method: string, path: string, body?: unknown): Promise<Json> => {
    const answer = await m.call(method, `${ACCOUNT}/${path}`, body);
    assert.ok(answer.status < 300, JSON.stringify(answer));
    return answer.body;
  };
  const user = await call('POST', 'scim/v2/Users', { userName: 'dev@example.com' });
  await call('POST', 'scim/v2/Users', { userName: 'keys@example.com', roles: [{ value: 'account_admin' }] });
  await call('PUT', `workspaces/1/permissionassignments/principals/${String(user.id)}`, { permissions: ['USER'] });
  accountToken = String((await call('POST', 'tokens', { user_name: 'keys@example.com' })).token_value);
  workspaceToken = String((await call('POST', 'tokens', { user_name: 'dev@example.com', workspace_id: 1 })).token_value);
});
after(async () => {
  await m?.[Symbol.asyncDispose]();
  await bed?.[Symbol.asyncDispose]();
});

const statuses = async (of: readonly Route[], token: string): Promise<Map<string, number>> => {
  const found = new Map<string, number>();
  for (const route of of) found.set(route.name, (await m.call(route.method, route.path, undefined, token)).status);
  return found;
};
const others = (found: Map<string, number>, expected: number): string[] =>
  [...found].filter(([, status]) => status !== expected).map(([name, status]) => `${name}: ${status}`);

test('the list has the routes of keys and those of projects', () => {
  assert.ok(routes.filter((r) => r.ofAccount).length >= 20, `${routes.length} routes`);
  assert.ok(routes.filter((r) => !r.ofAccount).length >= 20, `${routes.length} routes`);
  for (const name of ['customer-managed-keys', 'encryption/rotate', 'audit-log', 'shred-reports'])
    assert.ok(
      routes.some((r) => r.ofAccount && r.path.includes(name)),
      name,
    );
});

test('without a token, or with a made-up one, nothing', async () => {
  for (const token of ['', 'lbpat_0000000000000000000000000000000000000000'])
    assert.deepEqual(others(await statuses(routes, token), 401), []);
});

test('a workspace token is refused by every route of the account, and changes nothing there', async () => {
  const seen = async (): Promise<unknown> =>
    Promise.all(['customer-managed-keys', 'workspaces', 'scim/v2/Users'].map(async (p) => (await m.call('GET', `${ACCOUNT}/${p}`)).body));
  const before = await seen();
  assert.deepEqual(
    others(
      await statuses(
        routes.filter((r) => r.ofAccount),
        workspaceToken,
      ),
      403,
    ),
    [],
  );
  assert.deepEqual(await seen(), before);
  assert.equal((await m.call('GET', 'postgres/projects', undefined, workspaceToken)).status, 200);
});

test('an account token is refused by every route that is not of the account', async () => {
  const found = await statuses(
    routes.filter((r) => !r.ofAccount && !OF_BOTH.has(r.name)),
    accountToken,
  );
  assert.deepEqual(others(found, 403), []);
  // Naming a workspace does not help.
  const named = await m.call('GET', 'postgres/projects', undefined, accountToken, { 'x-databricks-org-id': '1' });
  assert.ok([401, 403].includes(named.status), JSON.stringify(named));
  assert.equal((await m.call('GET', `${ACCOUNT}/customer-managed-keys`, undefined, accountToken)).status, 200);
});

test('neither token opens what services say among themselves', async () => {
  for (const token of [accountToken, workspaceToken])
    for (const [method, path] of [
      ['POST', 'wake'],
      ['POST', 'role'],
      ['POST', 'token'],
      ['GET', 'nothing'],
    ] as const) {
      const answer = await fetch(`${m.baseUrl}/internal/v1/${path}`, { method, headers: { authorization: `Bearer ${token}` } });
      assert.equal(answer.status, 401, `${method} /internal/v1/${path}`);
    }
});
