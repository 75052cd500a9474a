import assert from 'node:assert/strict';
import { it } from 'node:test';
import type { KeyManagerClient, WatchLine, WatchedProject } from '@lakebase/api';
import { REFERENCE_BYTES } from '@lakebase/api';
import { LakebaseError, silentLogger } from '@lakebase/base';
import { DEK_REFERENCE_BYTES, frameNonce, randomSecret, unwrapDek, wrapDek } from '@lakebase/envelope';
import type { ProjectUid } from '@lakebase/ids';
import { KeyRing, LocalKeys } from './index.ts';

const P = '1'.repeat(32) as ProjectUid;
const Q = '2'.repeat(32) as ProjectUid;
const ZEROS = Buffer.alloc(32);

/** A key manager in memory with a watch that the test writes. */
class FakeKeyManager {
  readonly kek = randomSecret();
  #lines: WatchLine[] = [];
  #wake = (): void => {};
  watches = 0;
  /** Held back by the test. */
  gate: Promise<void> = Promise.resolve();
  send(line: WatchLine): void {
    this.#lines.push(line);
    this.#wake();
  }
  state(project: ProjectUid, state: WatchedProject['state'], kekVersion = 1): void {
    this.send({ kind: 'change', project, state, reason: 'because', kekVersion });
  }
  snapshot(...projects: ProjectUid[]): void {
    this.send({
      kind: 'snapshot',
      leaseSeconds: 8,
      projects: projects.map((project) => ({ project, state: 'ACTIVE', reason: '', kekVersion: 1 })),
    });
  }
  async *watch(signal: AbortSignal): AsyncGenerator<WatchLine> {
    this.watches++;
    signal.addEventListener('abort', () => this.#wake());
    while (!signal.aborted) {
      const line = this.#lines.shift();
      if (line !== undefined) yield line;
      else await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }
  async deks(p: string, count: number) {
    await this.gate;
    return Array.from({ length: count }, () => {
      const dek = randomSecret();
      return { dek, reference: wrapDek(this.kek, 1, 'a', p, dek) };
    });
  }
  async unwrap(p: string, references: readonly Buffer[]): Promise<Buffer[]> {
    await this.gate;
    return references.map((r) => unwrapDek(this.kek, 'a', p, r));
  }
}

const ring = (fake: FakeKeyManager, leaseMs?: number): KeyRing =>
  new KeyRing({
    client: fake as unknown as KeyManagerClient,
    log: silentLogger,
    poolSize: 4,
    ...(leaseMs === undefined ? {} : { leaseMs }),
  });
const changed = (r: KeyRing): Promise<[string, boolean, string]> => new Promise((resolve) => r.onChange((...args) => resolve(args)));

it('the two layers agree on the size of a reference', () => assert.equal(REFERENCE_BYTES, DEK_REFERENCE_BYTES));

it('creates, restores, and locks: every buffer is zeros before listeners hear of it', async () => {
  const fake = new FakeKeyManager();
  const keys = ring(fake);
  const started = keys.start();
  fake.snapshot(P, Q);
  await started;
  const p = keys.project(P);
  assert.throws(() => p.create(), { code: 'UNAVAILABLE' }, 'nothing reserved yet');
  await p.ready();
  await p.reserve(3);
  const object = p.create();
  const cipher = object.frames(Buffer.alloc(16));
  const sealed = cipher.seal(Buffer.from('secret'), frameNonce(0), ZEROS);
  assert.equal(
    p
      .restore(object.algorithm, object.keyReference)
      .frames(Buffer.alloc(16))
      .open(sealed.bytes, frameNonce(0), sealed.tag, ZEROS)
      .toString(),
    'secret',
  );
  const cached = p.dek(object.keyReference) as Buffer;
  const fresh = p.take();
  const stranger = wrapDek(fake.kek, 1, 'a', P, randomSecret());
  assert.throws(() => p.restore(1, stranger), { code: 'UNAVAILABLE', message: /loaded/ });
  await p.load([stranger, object.keyReference, stranger]);
  assert.doesNotThrow(() => p.restore(1, stranger));
  await keys.project(Q).ready();

  const told = new Promise<void>((resolve) =>
    keys.onChange((project, usable, reason) => {
      if (usable) return;
      assert.deepEqual([project, usable], [P, false]);
      assert.match(reason, /may not be used: because/);
      assert.deepEqual(cached, ZEROS);
      assert.deepEqual(p.held, { pool: 0, cached: 0 });
      assert.throws(() => cipher.seal(ZEROS, frameNonce(1), ZEROS), { code: 'KEY_REVOKED' });
      resolve();
    }),
  );
  fake.state(P, 'REVOKED');
  await told;
  assert.throws(() => p.create(), { code: 'KEY_REVOKED' });
  assert.throws(() => p.restore(1, stranger), { code: 'KEY_REVOKED' });
  await assert.rejects(p.load([stranger]), { code: 'KEY_REVOKED' });
  await assert.rejects(p.ready(), { code: 'KEY_REVOKED' });
  assert.notDeepEqual(fresh.dek, ZEROS, "the receiver's copy is the receiver's");
  assert.doesNotThrow(() => keys.project(Q).create(), 'others go on');
  const back = changed(keys);
  fake.state(P, 'ACTIVE');
  await back;
  await p.ready();
  await p.load([object.keyReference]);
  assert.doesNotThrow(() => p.restore(1, object.keyReference));
  await keys.stop();
  assert.throws(() => p.create(), { code: 'CLOSED' });
});

it('keys that arrive after a lock are thrown away', async () => {
  const fake = new FakeKeyManager();
  const keys = ring(fake);
  const started = keys.start();
  fake.snapshot(P);
  await started;
  const p = keys.project(P);
  const gate = Promise.withResolvers<void>();
  fake.gate = gate.promise;
  const reference = wrapDek(fake.kek, 1, 'a', P, randomSecret());
  const [loading, reserving] = [p.load([reference]), p.reserve(2)];
  const told = changed(keys);
  fake.state(P, 'SUSPENDED');
  await told;
  gate.resolve();
  await assert.rejects(loading, { code: 'KEY_REVOKED' });
  await assert.rejects(reserving, { code: 'KEY_REVOKED' });
  assert.deepEqual(p.held, { pool: 0, cached: 0 });
  await keys.stop();
});

it('silence longer than the lease locks every project; a new snapshot opens them', async () => {
  const fake = new FakeKeyManager();
  const keys = ring(fake, 30);
  const started = keys.start();
  fake.snapshot(P);
  await started;
  const p = keys.project(P);
  await p.reserve(1);
  const [project, usable, reason] = await changed(keys);
  assert.deepEqual([project, usable], [P, false]);
  assert.match(reason, /does not answer/);
  assert.throws(() => p.create(), { code: 'UNAVAILABLE' });
  fake.send({ kind: 'heartbeat' }); // on the old connection: not believed, it connects again
  const back = changed(keys);
  fake.snapshot(P);
  assert.equal((await back)[1], true);
  await p.ready();
  p.create();
  await keys.stop();
});

it('a new KEK version drops fresh keys of the old one and is told', async () => {
  const fake = new FakeKeyManager();
  const keys = ring(fake);
  const started = keys.start();
  fake.snapshot(P);
  await started;
  const p = keys.project(P);
  await p.reserve(4);
  const told = new Promise<number>((resolve) => keys.onRotation((_, version) => resolve(version)));
  fake.state(P, 'ACTIVE', 2);
  assert.equal(await told, 2);
  assert.equal(p.held.pool, 0);
  assert.equal(p.kekVersion, 2);
  await keys.stop();
});

it('a new KEK version has fresh keys fetched for whoever takes them without waiting', async () => {
  const fake = new FakeKeyManager();
  const keys = ring(fake);
  const started = keys.start();
  fake.snapshot(P);
  await started;
  const p = keys.project(P);
  await p.reserve(4);
  const asked = Promise.withResolvers<void>();
  fake.deks = async (project, count) => {
    asked.resolve();
    return FakeKeyManager.prototype.deks.call(fake, project, count);
  };
  fake.state(P, 'ACTIVE', 2);
  await asked.promise; // and nobody has taken or reserved one
  await keys.stop();
});

it('local keys: the same behaviour, with revoke, restore, rotate and destroy', async () => {
  const keys = new LocalKeys();
  const p = keys.project(P);
  await p.ready();
  const object = p.create();
  keys.revoke(P);
  assert.throws(() => p.restore(1, object.keyReference), LakebaseError);
  keys.restore(P);
  await p.load([object.keyReference]);
  assert.equal(keys.rotate(P), 2);
  const [rewrapped] = await p.rewrap([object.keyReference]);
  keys.destroy(P, 2);
  await keys.stop();
  const again = keys.project(P);
  await again.load([object.keyReference, rewrapped as Buffer]);
  assert.throws(() => again.restore(1, object.keyReference), { code: 'CORRUPT' });
  again.restore(1, rewrapped as Buffer);
});
