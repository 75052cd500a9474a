/** The service over HTTP with the real client and key ring at the other end: watch, keys in octets, prober, revocation, restart. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { KeyManagerClient, internalToken } from '@lakebase/api';
import { silentLogger } from '@lakebase/base';
import { frameNonce } from '@lakebase/envelope';
import type { ProjectUid } from '@lakebase/ids';
import { KeyRing } from '@lakebase/keys';
import { parseConfig } from '@lakebase/service-kit';
import { keyManagerConfig } from './config.ts';
import { type KeyManagerServer, startKeyManager } from './server.ts';
import { ScriptedKms, binding, cmk } from './testing.ts';

const P = 'd'.repeat(32) as ProjectUid;
const Q = 'e'.repeat(32) as ProjectUid;
const SECRET = 'ab'.repeat(32);
const EPOCH = Buffer.alloc(16, 1);

class Bed implements AsyncDisposable {
  readonly dir: string = mkdtempSync(join(tmpdir(), 'lb-kms-'));
  readonly kms = new ScriptedKms();
  server!: KeyManagerServer;
  #port = 0;
  client!: KeyManagerClient;
  readonly rings: KeyRing[] = [];

  async start(more: Record<string, unknown> = {}): Promise<this> {
    const config = parseConfig(
      keyManagerConfig,
      {
        id: 'keymanager',
        httpPort: this.#port,
        secretFile: '',
        dataDir: join(this.dir, 'data'),
        rootKeyFile: join(this.dir, 'root.key'),
        probeIntervalMs: 100,
        versionCheckMs: 100,
        storageServices: ['pageserver'],
        ...more,
      },
      'test',
    );
    this.server = await startKeyManager(config, SECRET, silentLogger, { open: (c) => this.kms.open(c) });
    this.#port = this.server.httpPort;
    this.client = new KeyManagerClient({ baseUrl: `http://127.0.0.1:${this.#port}`, token: internalToken(SECRET, 'service') });
    return this;
  }

  async ring(): Promise<KeyRing> {
    const ring = new KeyRing({ client: this.client, log: silentLogger, poolSize: 4 });
    this.rings.push(ring);
    await ring.start();
    return ring;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const ring of this.rings) await ring.stop();
    await this.server.close();
    rmSync(this.dir, { recursive: true });
  }
}

/** The next time a project becomes (un)usable. */
const change = (ring: KeyRing, project: ProjectUid, usable: boolean): Promise<string> =>
  new Promise((resolve) => ring.onChange((p, u, reason) => p === project && u === usable && resolve(reason)));

it('from creation to use, revocation by the probe, other projects untouched, and back by itself', async () => {
  await using bed = await new Bed().start();
  const ring = await bed.ring();
  const p = ring.project(P);
  await assert.rejects(p.ready(50), { code: 'UNAVAILABLE' });
  await bed.client.createProject(P, binding('k1'));
  await bed.client.createProject(Q, binding('k2'));
  await p.ready();
  await ring.project(Q).ready();
  const object = p.create();
  const sealed = object.frames(EPOCH).seal(Buffer.from('page'), frameNonce(0), EPOCH);

  const locked = change(ring, P, false);
  bed.kms.outcome.set('k1', 'DENIED');
  assert.match(await locked, /scripted DENIED/);
  assert.throws(() => object.frames(EPOCH), { code: 'KEY_REVOKED' });
  await assert.rejects(bed.client.deks(P, 1), { code: 'KEY_REVOKED' });
  await assert.rejects(bed.client.unwrap(P, [object.keyReference]), { code: 'KEY_REVOKED' });
  assert.doesNotThrow(() => ring.project(Q).create());
  assert.equal((await bed.client.status(P)).state, 'REVOKED');

  const open = change(ring, P, true);
  bed.kms.outcome.delete('k1');
  await open;
  await p.load([object.keyReference]);
  const again = p.restore(object.algorithm, object.keyReference).frames(EPOCH);
  assert.equal(again.open(sealed.bytes, frameNonce(0), sealed.tag, EPOCH).toString(), 'page');
});

it('a denied project makes the others under that key ask at once', async () => {
  await using bed = await new Bed().start({ probeIntervalMs: 60_000 });
  const ring = await bed.ring();
  await bed.client.createProject(P, binding('k1'));
  await bed.client.createProject(Q, binding('k1'));
  await ring.project(Q).ready();
  const locked = change(ring, Q, false);
  bed.kms.outcome.set('k1', 'DENIED');
  await bed.client.probe(P);
  await locked;
});

it('a new version of the customer key is noticed and the KEKs wrapped with it', async () => {
  await using bed = await new Bed().start();
  await bed.client.createProject(P, binding('k1'));
  bed.kms.newVersion('k1');
  for (;;) {
    const { keks } = await bed.client.status(P);
    if (keks[0]?.keyVersion === '2') break;
    await new Promise((resolve) => setTimeout(resolve, 20)); // nothing tells: a change of wrapping concerns nobody else
  }
});

it('rotation reaches the ring; re-wrapped references open after the old KEK is gone', async () => {
  await using bed = await new Bed().start();
  const ring = await bed.ring();
  await bed.client.createProject(P, binding('k1'));
  const p = ring.project(P);
  await p.ready();
  const { keyReference } = p.create();
  const told = new Promise<number>((resolve) => ring.onRotation((_, version) => resolve(version)));
  await bed.client.rotate(P, 'admin');
  assert.equal(await told, 2);
  const [fresh] = (await p.rewrap([keyReference])) as [Buffer];
  await bed.client.retire(P, 'pageserver', 2);
  const other = (await bed.ring()).project(P);
  await other.ready();
  await other.load([keyReference, fresh]);
  assert.doesNotThrow(() => other.restore(1, fresh));
  assert.throws(() => other.restore(1, keyReference), { code: 'CORRUPT' });
});

it('a restart goes on with the same keys; the ring connects again without being locked', async () => {
  await using bed = await new Bed().start();
  const ring = await bed.ring();
  await bed.client.createProject(P, binding('k1'));
  const p = ring.project(P);
  await p.ready();
  const { keyReference } = p.create();
  let changes = 0;
  ring.onChange(() => changes++);
  await bed.server.close();
  await bed.start();
  await bed.client.createProject(Q, binding('k1'));
  await ring.project(Q).ready();
  assert.equal(p.usable, true);
  assert.equal(changes, 1, 'only the new project');
  await p.load([keyReference]);
  assert.doesNotThrow(() => p.restore(1, keyReference));
});

it('shredding tells the ring and is reported; bad requests and wrong tokens are refused; the audit log is readable', async () => {
  await using bed = await new Bed().start();
  const ring = await bed.ring();
  await bed.client.createProject(P, binding('k1'));
  await ring.project(P).ready();
  const locked = change(ring, P, false);
  const report = await bed.client.shred(P, 'admin');
  assert.match(report.statement, /cannot be decrypted/);
  assert.match(await locked, /destroyed/);
  const stranger = new KeyManagerClient({ baseUrl: bed.client.http.baseUrl, token: 'wrong' });
  await assert.rejects(stranger.deks(P, 1), { code: 'UNAUTHENTICATED' });
  await assert.rejects(stranger.projects(), { code: 'UNAUTHENTICATED' });
  await assert.rejects(bed.client.status(Q), { code: 'NOT_FOUND' });
  await assert.rejects(bed.client.createProject(Q, { ...binding('k1'), account: 'a b' }), { code: 'INVALID_ARGUMENT' });
  await assert.rejects(bed.client.http.call('PUT', `/v1/projects/x/binding`, binding('k1')), { code: 'INVALID_ID' });
  bed.kms.outcome.set('k7', 'DENIED');
  assert.equal((await bed.client.check({ account: 'acc', kms: cmk('k7'), actor: 'admin' })).outcome, 'DENIED');
  await bed.client.audit({ actor: 'manager', action: 'TERMINATE_COMPUTES', account: 'acc', subject: P, result: 'OK', detail: '' });
  const actions = [];
  for await (const line of bed.client.auditLines(0, AbortSignal.timeout(5_000))) actions.push(line['action']);
  for (const action of ['KEY_CREATE', 'KMS_WRAP', 'SHRED', 'KEY_CHECK', 'TERMINATE_COMPUTES']) assert.ok(actions.includes(action), action);
});
