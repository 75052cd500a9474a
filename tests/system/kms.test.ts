/** Issue 4, sections 2, 3 and 5, with a KMS at the far end of the real SDK: binding, revocation and return, an outage within and beyond the
 *  grace, and a project that moves from the installation root key to a KMS and back under load. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { FakeAwsKms, type FakeFaults } from '@lakebase/kms/testing';
import { Cluster, eventually } from '@lakebase/testkit';
import type pg from 'pg';
import { KeyedProject, PublicApi, encryptionPath } from './key-scene.ts';
import { Ledger } from './ledger.ts';

/** From a switch at the KMS to its effect everywhere: 5 s between probes, and some. */
const BOUND_MS = 15_000;
const KEYS = 'accounts/default/customer-managed-keys';
const WORKSPACES = 'accounts/default/workspaces';

describe('a key in a KMS', () => {
  const fake = new FakeAwsKms();
  let cluster: Cluster;
  let account: PublicApi;
  let project: KeyedProject;
  let configuration: ReturnType<typeof newKey>;
  let ledger: Ledger;
  let defaults: Ledger;

  before(async () => {
    await fake.listen();
    cluster = await Cluster.start();
    account = new PublicApi(cluster);
  });
  after(async () => {
    fake.setFaults(null);
    await Promise.all([ledger?.stop(), defaults?.stop()]);
    await cluster?.[Symbol.asyncDispose]();
    await fake.close();
  });

  /** The configuration of a new key, as the account API takes it. */
  function newKey(name: string): { aws_key_info: { key_arn: string }; options: Record<string, string> } {
    const { key, options } = fake.createKey(name);
    return { aws_key_info: { key_arn: key }, options: { ...options } };
  }
  const timed = async (what: string, work: () => Promise<unknown>): Promise<number> => {
    const began = performance.now();
    await work();
    const ms = performance.now() - began;
    process.stdout.write(`# ${what}: ${Math.round(ms)} ms\n`);
    return ms;
  };
  const ended = (client: pg.Client): Promise<Error & { code?: string }> => new Promise((resolve) => client.once('error', resolve));
  async function metric(name: string): Promise<number> {
    const config = readFileSync(join(cluster.home, 'config', 'keymanager.json'), 'utf8');
    const { httpPort } = JSON.parse(config) as { httpPort: number };
    const text = await (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text();
    return Number(
      text
        .split('\n')
        .find((line) => line.startsWith(`${name} `))
        ?.split(' ')
        .at(-1),
    );
  }
  /** A probe joins one that is under way, and that may have been asked while the KMS still failed. */
  const answers = (): Promise<true> =>
    eventually('the KMS answers', async () => ((await probe())['state'] === 'ACTIVE' ? true : undefined), BOUND_MS);
  const probe = (): Promise<Record<string, unknown>> => account.call('POST', `${project.encryptionPath}/check`);

  it('is bound only when it works at that moment; the refusal names the missing permission', async () => {
    const body = newKey('customer');
    fake.deny('customer');
    const dry = await account.call('POST', `${KEYS}/check`, body);
    assert.equal(dry['outcome'], 'DENIED');
    const { customer_managed_key_id: id } = await account.call('POST', KEYS, body);
    const bind = { workspace_name: 'refused', managed_services_customer_managed_key_id: id };
    const refused = await account.raw('POST', WORKSPACES, bind);
    assert.equal(refused.status, 400);
    assert.match(String(refused.body['message']), /cannot be bound: .*kms:Encrypt/);
    fake.allow('customer');
    const standard = await account.raw('POST', WORKSPACES, { ...bind, pricing_tier: 'STANDARD' });
    assert.match(String(standard.body['message']), /ENTERPRISE tier/);
    await account.call('DELETE', `${KEYS}/${String(id)}`);

    configuration = body;
    project = await KeyedProject.under(cluster, 'secrets', body);
    const status = await project.encryption();
    assert.deepEqual([status['provider'], status['state'], status['serving']], ['AWS_KMS', 'ACTIVE', true]);
    assert.equal(status['key'], body.aws_key_info.key_arn);
    assert.ok(!JSON.stringify(status).includes('fake-secret'), 'options are never shown');
    ledger = new Ledger(project);
    await ledger.create();
    ledger.start(1);
    await ledger.progress(30);
  });

  it('disabled: everything of the project ends; enabled: everything is back', async () => {
    const idle = await project.connect();
    const told = ended(idle);
    const ms = await timed('from disable to the end of sessions', async () => {
      fake.disable('customer');
      const error = await told;
      assert.equal(error.code, '57P01', error.message);
      assert.match(error.message, /revoked/);
    });
    assert.ok(ms < BOUND_MS, `${ms} ms`);
    await assert.rejects(
      project.connect(),
      (e: Error & { code?: string }) => e.code === '57P03' && /DisabledException|enable/.test(e.message),
    );
    await eventually('no compute is left', () => (cluster.computePids().length === 0 ? true : undefined), BOUND_MS);
    const { state, serving } = (await project.encryption()) as { state: string; serving: boolean };
    assert.deepEqual([state, serving], ['REVOKED', false]);
    const back = await timed('from enable to the next commits', async () => {
      fake.enable('customer');
      await ledger.progress(10);
    });
    assert.ok(back < BOUND_MS, `${back} ms`);
    await ledger.verify();
  });

  it('an outage is no revocation: hang, 500, throttling, an error page; sessions go on and computes start', async () => {
    const session = await project.connect();
    for (const kind of ['throttle', 'error500', 'proxy403', 'hang'] satisfies FakeFaults['kind'][]) {
      fake.setFaults({ kind });
      const { state, serving } = await probe();
      assert.deepEqual([kind, state, serving], [kind, 'UNREACHABLE', true]);
      // What the alert looks at, from the first failure on.
      assert.equal(await metric('lakebase_key_projects{state="UNREACHABLE"}'), 1, kind);
      if (kind !== 'hang') {
        fake.setFaults(null);
        await answers();
      }
    }
    await session.query('SELECT 1');
    await session.end();
    await ledger.progress(10);
    // The KMS still hangs: the compute that starts now lives on the cached KEK.
    const [before] = cluster.computePids();
    await project.api.operate('POST', `projects/${project.name}/branches/production/endpoints/primary/suspend`, {});
    await ledger.progress(10);
    const [after] = cluster.computePids();
    assert.ok(after !== undefined && after !== before, 'another compute');
    assert.equal(await project.state(), 'UNREACHABLE');
  });

  it('beyond the grace nothing is served; when the KMS is back everything is', async () => {
    fake.setFaults(null);
    await answers();
    assert.equal((await account.call('PATCH', project.encryptionPath, { grace_seconds: 2 }))['grace_seconds'], 2);
    // Another project under the same key, with the grace it was born with.
    const patient = await KeyedProject.under(cluster, 'patient', configuration);
    const calm = await patient.connect();
    const session = await project.connect();
    const told = ended(session);
    fake.setFaults({ kind: 'error500' });
    assert.equal((await probe())['serving'], true);
    await timed('from the first failure to the end of sessions, grace 2 s', async () => assert.match((await told).message, /grace/));
    await assert.rejects(project.connect(), (e: Error & { code?: string }) => e.code === '57P03' && /grace/.test(e.message));
    const { state, serving } = (await project.encryption()) as { state: string; serving: boolean };
    assert.deepEqual([state, serving], ['UNREACHABLE', false]);
    await calm.query('SELECT 1');
    assert.deepEqual([(await patient.encryption())['serving'], (await patient.encryption())['grace_seconds']], [true, 600]);
    await calm.end();
    fake.setFaults(null);
    const ms = await timed('from the return of the KMS to the next commits', () => ledger.progress(10));
    assert.ok(ms < BOUND_MS, `${ms} ms`);
    await account.call('PATCH', project.encryptionPath, { grace_seconds: 600 });
    await ledger.stop();
    await ledger.verify();
  });

  it('the history tells it in order, to whoever may see the project', async () => {
    const { status } = await project.api.call('GET', `postgres/projects/${project.name}`);
    const history = (status as { encryption: { history: { time: string; state: string; serving: boolean; reason: string }[] } }).encryption
      .history;
    const told = history.map((h) => `${h.state}${h.serving ? '' : ', not serving'}`);
    assert.equal(told[0], 'ACTIVE');
    assert.equal(told.at(-1), 'ACTIVE');
    for (const [before, after] of [
      ['ACTIVE', 'REVOKED, not serving'],
      ['REVOKED, not serving', 'ACTIVE'],
      ['ACTIVE', 'UNREACHABLE'],
      ['UNREACHABLE', 'UNREACHABLE, not serving'],
      ['UNREACHABLE, not serving', 'ACTIVE'],
    ] as const)
      assert.ok(
        told.some((state, i) => state === before && told[i + 1] === after),
        `${before}, then ${after}: ${told.join('; ')}`,
      );
    assert.deepEqual(
      history.map((h) => h.time),
      history.map((h) => h.time).sort((a, b) => (a < b ? -1 : 1)),
    );
    for (const h of history) if (h.state !== 'ACTIVE') assert.match(h.reason, /\w/, JSON.stringify(h));
  });

  it('a project of the root key moves to a KMS and back, online, without an error for any client', async () => {
    defaults = new Ledger(cluster);
    await defaults.create();
    defaults.start(2);
    await defaults.progress(30);
    const path = encryptionPath('1', 'default');
    const { customer_managed_key_id: id } = await account.call('POST', KEYS, newKey('second'));

    const toKms = await account.call('PATCH', path, { customer_managed_key_id: id });
    assert.deepEqual([toKms['customer_managed'], toKms['provider'], toKms['state']], [true, 'AWS_KMS', 'ACTIVE']);
    await defaults.progress(30);
    assert.deepEqual([...defaults.errors], []);
    assert.equal((await account.raw('DELETE', `${KEYS}/${String(id)}`)).status, 409, 'in use');

    // It really is under that key now.
    fake.deny('second');
    assert.equal((await account.call('POST', `${path}/check`))['state'], 'REVOKED');
    fake.allow('second');
    assert.equal((await account.call('POST', `${path}/check`))['state'], 'ACTIVE');
    await defaults.progress(10);

    defaults.errors.clear(); // of the revocation
    const toRoot = await account.call('PATCH', path, { customer_managed_key_id: null });
    assert.deepEqual([toRoot['customer_managed'], toRoot['provider'], toRoot['state']], [false, 'LOCAL', 'ACTIVE']);
    fake.destroy('second');
    assert.equal((await account.call('POST', `${path}/check`))['state'], 'ACTIVE');
    await defaults.progress(30);
    await defaults.stop();
    assert.deepEqual([...defaults.errors], []);
    await defaults.verify();
    await account.call('DELETE', `${KEYS}/${String(id)}`);
  });
});
