/** The account API on a real metadata database: who may do what, bindings with a live check, inheritance, termination when a key goes. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { type Json, type RunningManager, TestBed, eventually } from './testing/test-manager.ts';

const A = 'accounts/default';
const KEY = { aws_key_info: { key_arn: 'arn:aws:kms:eu-west-1:111122223333:key/one', key_alias: 'alias/one' } };
let bed: TestBed;
let m: RunningManager;

before(async () => {
  bed = await TestBed.create();
  m = await bed.manager(bed.config(await bed.newDatabase()));
  await m.branchReady();
});
after(async () => {
  await m?.[Symbol.asyncDispose]();
  await bed?.[Symbol.asyncDispose]();
});

async function ok(method: string, path: string, body?: unknown, token?: string, headers?: Record<string, string>): Promise<Json> {
  const answer = await m.call(method, path, body, token, headers);
  assert.ok(answer.status === 200 || answer.status === 201, `${method} ${path}: ${JSON.stringify(answer)}`);
  return answer.body;
}
async function refused(status: number, pattern: RegExp, method: string, path: string, body?: unknown, token?: string): Promise<Json> {
  const answer = await m.call(method, path, body, token);
  assert.equal(answer.status, status, JSON.stringify(answer.body));
  assert.match(String(answer.body.message), pattern);
  return answer.body;
}
const arn = (name: string): string => `arn:aws:kms:eu-west-1:111122223333:key/${name}`;
const newKey = async (name: string): Promise<string> =>
  String((await ok('POST', `${A}/customer-managed-keys`, { aws_key_info: { key_arn: arn(name) } })).customer_managed_key_id);
const newWorkspace = (body: Json): Promise<Json> => ok('POST', `${A}/workspaces`, { workspace_name: 'team', ...body });
async function uidOf(project: string, headers: Record<string, string> = {}): Promise<string> {
  return String((await ok('GET', `postgres/projects/${project}`, undefined, undefined, headers)).uid).replaceAll('-', '');
}

test('key configurations: shapes of the account API, no secrets in answers, bad ones refused by field', async () => {
  const made = await ok('POST', `${A}/customer-managed-keys`, {
    ...KEY,
    use_cases: ['MANAGED_SERVICES'],
    options: { externalId: 'very-secret' },
  });
  assert.match(String(made.customer_managed_key_id), /^[0-9a-f-]{36}$/);
  assert.deepEqual(made.aws_key_info, KEY.aws_key_info);
  assert.equal(typeof made.creation_time, 'number');
  const all = await ok('GET', `${A}/customer-managed-keys`);
  assert.ok(Array.isArray(all));
  assert.ok(!JSON.stringify(all).includes('very-secret'));
  assert.deepEqual(await ok('GET', `${A}/customer-managed-keys/${String(made.customer_managed_key_id)}`), made);
  for (const [body, pattern] of [
    [{}, /exactly one of/],
    [{ aws_key_info: {} }, /'aws_key_info.key_arn' is required/],
    [{ aws_key_info: { key_arn: 'key/1' } }, /must be the ARN/],
    [{ gcp_key_info: { kms_key_id: 'k' } }, /projects\/P/],
    [{ azure_key_info: { key_vault_uri: 'vault', key_name: 'k' } }, /key_vault_uri/],
    [{ local_key_info: { key_name: '../root' } }, /key_name must match/],
    [{ local_key_info: { key_name: 'root' } }, /installation's own key/],
    [{ ...KEY, use_cases: ['OTHER'] }, /use_cases/],
    [{ ...KEY, options: { a: 1 } }, /options.a/],
  ] as const)
    await refused(400, pattern, 'POST', `${A}/customer-managed-keys`, body);
  await refused(404, /account not found/, 'GET', 'accounts/other/customer-managed-keys');
  await ok('DELETE', `${A}/customer-managed-keys/${String(made.customer_managed_key_id)}`);
  await refused(404, /not found/, 'GET', `${A}/customer-managed-keys/${String(made.customer_managed_key_id)}`);
});

test('binding needs the Enterprise tier and a key that works now; a bound configuration stays', async () => {
  const key = await newKey('bind');
  const workspace = await newWorkspace({ pricing_tier: 'PREMIUM' });
  const path = `${A}/workspaces/${String(workspace.workspace_id)}`;
  const bind = { managed_services_customer_managed_key_id: key };
  await refused(403, /ENTERPRISE tier/, 'PATCH', path, bind);
  bed.fake.keyManager.checks.set(arn('bind'), { ok: false, outcome: 'DENIED', message: 'AccessDenied: grant kms:Decrypt to the role' });
  await refused(400, /cannot be bound: .*kms:Decrypt/, 'PATCH', path, { ...bind, pricing_tier: 'ENTERPRISE' });
  assert.equal((await ok('GET', path)).pricing_tier, 'PREMIUM');
  bed.fake.keyManager.checks.delete(arn('bind'));
  await ok('PATCH', path, { ...bind, pricing_tier: 'ENTERPRISE' });
  assert.equal((await ok('GET', path)).managed_services_customer_managed_key_id, key);
  await refused(409, /in use by workspace/, 'DELETE', `${A}/customer-managed-keys/${key}`);
  await refused(400, /unbind the key first/, 'PATCH', path, { pricing_tier: 'STANDARD' });
  await ok('PATCH', path, { managed_services_customer_managed_key_id: null });
  await ok('DELETE', `${A}/customer-managed-keys/${key}`);
  const actions = bed.fake.keyManager.audit.map((a) => a.action);
  for (const action of ['CREATE_KEY_CONFIGURATION', 'CREATE_WORKSPACE', 'BIND_KEY', 'UNBIND_KEY', 'DELETE_KEY_CONFIGURATION'])
    assert.ok(actions.includes(action), action);
});

test('a dry run says what a key would do', async () => {
  assert.equal((await ok('POST', `${A}/customer-managed-keys/check`, KEY)).ok, true);
  bed.fake.keyManager.checks.set(KEY.aws_key_info.key_arn, { ok: false, outcome: 'UNREACHABLE', message: 'no answer in 3 s' });
  assert.deepEqual((await ok('POST', `${A}/customer-managed-keys/check`, KEY)).outcome, 'UNREACHABLE');
});

test('projects inherit the key of their workspace at creation, move online, and their deletion destroys keys', async () => {
  const [one, two] = [await newKey('inherit'), await newKey('moved')];
  const workspace = await newWorkspace({ managed_services_customer_managed_key_id: one });
  const in_ = { 'x-databricks-org-id': String(workspace.workspace_id) };
  await ok('POST', 'postgres/projects?project_id=inner', {}, undefined, in_);
  await eventually(
    'project',
    async () => (await m.call('GET', 'postgres/projects/inner', undefined, undefined, in_)).body.status?.encryption?.state === 'ACTIVE',
  );
  const uid = await uidOf('inner', in_);
  assert.equal(bed.fake.keyManager.keys.get(uid)?.binding.kms.key, arn('inherit'));
  assert.equal((await m.call('GET', 'postgres/projects/inner')).status, 404); // another workspace's
  const encryption = `${A}/workspaces/${String(workspace.workspace_id)}/projects/inner/encryption`;
  assert.equal((await ok('GET', encryption)).customer_managed_key_id, one);
  await ok('PATCH', encryption, { customer_managed_key_id: two });
  assert.equal(bed.fake.keyManager.keys.get(uid)?.binding.kms.key, arn('moved'));
  await refused(409, /in use by project inner/, 'DELETE', `${A}/customer-managed-keys/${two}`);
  assert.equal((await ok('POST', `${encryption}/rotate`)).kek_version, 2);
  assert.equal((await ok('PATCH', encryption, { grace_seconds: 30 })).grace_seconds, 30);
  await refused(400, /grace_seconds must be a whole number/, 'PATCH', encryption, { grace_seconds: -1 });
  await refused(400, /'grace_seconds' is required/, 'PATCH', encryption, {});
  await refused(409, /1 projects/, 'DELETE', `${A}/workspaces/${String(workspace.workspace_id)}`);
  await ok('DELETE', 'postgres/projects/inner', undefined, undefined, in_);
  await eventually('shredded', async () => (await ok('GET', `${A}/shred-reports`)).shred_reports.length === 1);
  assert.ok(!bed.fake.keyManager.keys.has(uid));
  await eventually('gone', async () => (await m.call('DELETE', `${A}/workspaces/${String(workspace.workspace_id)}`)).status === 200);
});

test('two powers: who manages keys reaches no data, who works with data manages no keys', async () => {
  const workspace = await newWorkspace({});
  const user = await ok('POST', `${A}/scim/v2/Users`, { userName: 'dev@example.com' });
  const admin = await ok('POST', `${A}/scim/v2/Users`, { userName: 'keys@example.com', roles: [{ value: 'account_admin' }] });
  await refused(409, /exists/, 'POST', `${A}/scim/v2/Users`, { userName: 'dev@example.com' });
  const number = Number(workspace.workspace_id);
  await refused(400, /not assigned/, 'POST', `${A}/tokens`, { user_name: 'dev@example.com', workspace_id: number });
  await refused(400, /no account admin/, 'POST', `${A}/tokens`, { user_name: 'dev@example.com' });
  const assignment = `${A}/workspaces/${number}/permissionassignments/principals/${String(user.id)}`;
  await ok('PUT', assignment, { permissions: ['USER'] });
  const dev = String((await ok('POST', `${A}/tokens`, { user_name: 'dev@example.com', workspace_id: number })).token_value);
  const keys = String((await ok('POST', `${A}/tokens`, { user_name: 'keys@example.com' })).token_value);

  await ok('GET', `${A}/customer-managed-keys`, undefined, keys);
  await refused(403, /not for a workspace/, 'GET', 'postgres/projects', undefined, keys);
  await refused(403, /not for a workspace/, 'POST', 'postgres/credentials', { endpoint: 'x' }, keys);
  assert.deepEqual((await ok('GET', 'postgres/projects', undefined, dev)).projects, []);
  await refused(403, /account admin/, 'GET', `${A}/customer-managed-keys`, undefined, dev);
  await refused(403, /account admin/, 'POST', `${A}/customer-managed-keys`, KEY, dev);
  await refused(403, /account admin/, 'GET', `${A}/audit-log`, undefined, dev);
  // A header for another workspace does not widen a token.
  assert.equal((await m.call('GET', 'postgres/projects', undefined, dev, { 'x-databricks-org-id': '1' })).status, 401);
  assert.equal((await ok('GET', 'preview/scim/v2/Me', undefined, keys)).userName, 'keys@example.com');
  // Rights that are taken away count at once.
  await ok('DELETE', assignment);
  assert.equal((await m.call('GET', 'postgres/projects', undefined, dev)).status, 401);
  await ok('DELETE', `${A}/scim/v2/Users/${String(admin.id)}`);
  assert.equal((await m.call('GET', `${A}/customer-managed-keys`, undefined, keys)).status, 401);
});

test('a key that goes: computes end at once, wakes say why, the return of the key is enough', async () => {
  const uid = await uidOf('default');
  const endpoint = String((await m.endpoint()).uid);
  await m.internal.wake(endpoint);
  assert.equal(bed.fake.running().length, 1);
  bed.fake.keyManager.setState(uid, 'REVOKED');
  await eventually('terminated', () => bed.fake.running().length === 0);
  const stop = bed.fake.calls.findLast((c) => c.service === 'compute' && c.path.endsWith('/stop'));
  assert.equal((stop?.body as { mode?: string } | undefined)?.mode, 'immediate');
  await assert.rejects(
    m.internal.wake(endpoint),
    (error: Error) => /revoked/.test(error.message) && (error as { code?: string }).code === 'KEY_REVOKED',
  );
  assert.match(String((await m.internal.explain(endpoint)).reason), /customer-managed key of this project is revoked/);
  assert.equal((await ok('GET', 'postgres/projects/default')).status.encryption.state, 'REVOKED');
  await eventually('audited', () => bed.fake.keyManager.audit.some((a) => a.action === 'TERMINATE_COMPUTES' && a.subject === uid));
  bed.fake.keyManager.setState(uid, 'ACTIVE');
  await eventually('woken', async () => (await m.internal.wake(endpoint)).computeId !== '');
  assert.equal((await m.internal.explain(endpoint)).reason, null);
});

test('an unreachable KMS terminates nothing and starts go on while the key is cached; a longer outage suspends', async () => {
  const uid = await uidOf('default');
  const endpoint = String((await m.endpoint()).uid);
  const { computeId } = await m.internal.wake(endpoint);
  bed.fake.keyManager.setState(uid, 'UNREACHABLE');
  await eventually('seen', async () => (await ok('GET', 'postgres/projects/default')).status.encryption.state === 'UNREACHABLE');
  assert.equal((await m.internal.wake(endpoint)).computeId, computeId);
  bed.fake.keyManager.setState(uid, 'SUSPENDED');
  await eventually('terminated', () => bed.fake.running().length === 0);
  await assert.rejects(m.internal.wake(endpoint), /longer than its grace/);
  bed.fake.keyManager.setState(uid, 'ACTIVE');
  await eventually('woken', async () => (await m.internal.wake(endpoint)).computeId !== computeId);
});
