/** Faults of what stores pages and WAL objects, under load, each with what must hold after it: no acknowledged commit is lost or doubled (I1), tables and
 *  indexes agree and every stored object opens (I2), and it goes on (I6). Numbers are those of the fault list. Shared by the smoke test and the long form. */
import assert from 'node:assert/strict';
import { globSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import type { ScrubSummary } from '@lakebase/api';
import { type FailpointName, errorMessage } from '@lakebase/base';
import { Cluster, type ServiceName, eventually } from '@lakebase/testkit';
import { Inside } from './inside.ts';
import { Ledger } from './ledger.ts';
import { amcheck } from './amcheck.ts';

/** Where a pageserver may die on the way of a change from memory into the object store. */
export const KILL_PLACES = [
  'pageserver.flush.before-layer',
  'pageserver.flush.before-index',
  'pageserver.flush.after-index',
  'pageserver.compaction.before-publish',
  'pageserver.compaction.after-publish',
  'pageserver.upload.before-layer',
  'pageserver.upload.after-layer',
  'pageserver.upload.before-index',
  'pageserver.upload.after-index',
  'pageserver.delete.before-objects',
  'object-store.put-applied',
] as const satisfies readonly FailpointName[];

const STORES = ['pageserver', 'sk1', 'sk2', 'sk3'] as const satisfies readonly ServiceName[];

export class StorageFaults implements AsyncDisposable {
  readonly cluster: Cluster;
  readonly ledger: Ledger;
  readonly inside: Inside;
  readonly #log: (line: string) => void;

  private constructor(cluster: Cluster, log: (line: string) => void) {
    this.cluster = cluster;
    this.ledger = new Ledger(cluster);
    this.inside = new Inside(cluster);
    this.#log = log;
  }

  static async start(log: (line: string) => void = () => {}): Promise<StorageFaults> {
    const faults = new StorageFaults(await Cluster.start({ env: { LAKEBASE_FAILPOINTS_ROUTE: '1' } }), log);
    try {
      await faults.ledger.create();
      faults.ledger.start(2);
      await faults.ledger.progress(50);
      return faults;
    } catch (error) {
      await faults[Symbol.asyncDispose]();
      throw error;
    }
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.ledger.stop();
    await this.cluster[Symbol.asyncDispose]();
  }

  /** I6; then, with a compute that has nothing on its disk yet, so that every page comes from storage, I1 and I2. */
  async check(what: string): Promise<void> {
    const began = performance.now();
    await this.ledger.progress(20, 90_000);
    const progressed = performance.now();
    await this.ledger.stop();
    try {
      const { code, stderr } = await this.cluster.cli(['suspend']);
      assert.equal(code, 0, `${what}: ${stderr}`);
      await eventually(`${what}: the ledger is whole`, () => this.ledger.verify().then(() => true));
      await amcheck(this.cluster);
    } finally {
      this.ledger.start(2);
    }
    const rows = this.ledger.acknowledged.size;
    this.#log(`${what}: going on after ${Math.round(progressed - began)} ms, ${rows} rows all there, indexes and heaps agree`);
  }

  /** Every B-tree of the database against its table, and every heap tuple by tuple. */
  /** Every object and file is as it was written; orphans may wait for their time. */
  async scrubbed(what: string): Promise<void> {
    const { stdout, stderr } = await this.cluster.cli(['scrub', '--output', 'json', '--rate', '1000']);
    assert.notEqual(stdout, '', `${what}: ${stderr}`);
    const { services } = JSON.parse(stdout) as ScrubSummary;
    for (const s of services) {
      assert.equal(s.state, 'DONE', `${what}: ${s.service}: ${s.error ?? ''}`);
      assert.deepEqual(
        s.findings.filter((f) => f.kind !== 'orphan'),
        [],
        what,
      );
    }
  }

  #timelines(): { project: string; timeline: string }[] {
    return globSync(join(this.cluster.home, 'data/sk1/*/*/control')).map((path) => {
      const [project = '', timeline = ''] = path.split('/').slice(-3);
      return { project, timeline };
    });
  }

  /** Makes the pageserver write, merge and upload what it has. */
  async #work(): Promise<void> {
    const http = this.inside.http('pageserver');
    for (const { project, timeline } of this.#timelines()) {
      await http.call('POST', `/v1/timelines/${project}/${timeline}/checkpoint`, {});
      await http.call('POST', `/v1/projects/${project}/upload`, {});
    }
  }

  /** F4: kill -9 at a place on the way into the object store. */
  async killPageserverAt(place: (typeof KILL_PLACES)[number]): Promise<void> {
    const [pid] = this.cluster.pids('pageserver');
    assert.ok(pid !== undefined, 'the pageserver runs');
    await this.inside.arm('pageserver', place, 'kill');
    await eventually(
      `the pageserver reaches ${place} and dies`,
      async () => {
        if (!this.cluster.pids('pageserver').includes(pid)) return true;
        // An answer that never comes is the point of it.
        await this.#work().catch(() => {});
        await this.ledger.progress(5, 30_000).catch(() => {});
        return this.cluster.pids('pageserver').includes(pid) ? undefined : true;
      },
      120_000,
    );
    await eventually('another pageserver serves', () =>
      this.inside
        .http('pageserver')
        .call('GET', '/healthz')
        .then(() => true),
    );
    await this.check(`F4 ${place}`);
    await this.#work();
  }

  /** F13: the pageserver's disk is gone. */
  async losePageserverDisk(): Promise<void> {
    await this.ledger.stop();
    await eventually('everything is uploaded', () => this.#work().then(() => true));
    await this.cluster.stop();
    const bytes = globSync(join(this.cluster.home, 'data/pageserver/timelines/*/*/*')).reduce((n, f) => n + statSync(f).size, 0);
    rmSync(join(this.cluster.home, 'data/pageserver'), { recursive: true });
    await this.cluster.up();
    const began = performance.now();
    await this.ledger.verify();
    this.#log(
      `F13: ${Math.round(bytes / 1e6)} MB gone from disk; all rows read ${Math.round(performance.now() - began)} ms after the start`,
    );
    this.ledger.start(2);
    await this.check('F13');
  }

  /** F23: the object store is away, and comes back. Commits and reads of what is local go on. */
  async loseObjectStore(): Promise<void> {
    const objects = join(this.cluster.home, 'objects');
    renameSync(objects, `${objects}.away`);
    try {
      await this.ledger.progress(50, 60_000);
      await this.ledger.verify();
      await assert.rejects(
        this.inside.http('pageserver').call('POST', `/v1/projects/${this.#timelines()[0]?.project ?? ''}/upload`, {}, { timeoutMs: 3_000 }),
      );
      await this.ledger.progress(20, 60_000);
    } finally {
      rmSync(objects, { recursive: true, force: true });
      renameSync(`${objects}.away`, objects);
    }
    await this.check('F23');
    await eventually('uploads go on', () => this.#work().then(() => true), 120_000);
  }

  /** F22: a store that fails often, and answers puts that it did with an error. */
  async failingObjectStore(): Promise<void> {
    for (const service of STORES) {
      await this.inside.arm(service, 'object-store.put', 'error(UNAVAILABLE)%0.3:11');
      await this.inside.arm(service, 'object-store.put-applied', 'error(UNAVAILABLE)%0.3:12');
      await this.inside.arm(service, 'object-store.get', 'error(UNAVAILABLE)%0.3:13');
      await this.inside.arm(service, 'object-store.delete', 'error(UNAVAILABLE)%0.5:14');
    }
    await eventually('uploads come through all the same', () => this.#work().then(() => true), 120_000);
    await this.check('F22');
    for (const service of STORES)
      for (const place of ['object-store.put', 'object-store.put-applied', 'object-store.get', 'object-store.delete'] as const)
        await this.inside.arm(service, place, 'off');
    await eventually('uploads go on', () => this.#work().then(() => true), 120_000);
  }

  /** F11: bit rot in an object whose local copy is gone. An error or the truth, never a wrong page; whole again when the object is. */
  async rotRemoteLayer(): Promise<void> {
    await this.ledger.stop();
    await eventually('everything is uploaded', () => this.#work().then(() => true));
    await this.cluster.cli(['suspend']);
    await this.cluster.stop();
    const object = globSync(join(this.cluster.home, 'objects/projects/*/timelines/*/*.layer'))
      .sort((a, b) => statSync(b).size - statSync(a).size)
      .find((path) => this.#localOf(path) !== undefined);
    assert.ok(object !== undefined, 'a layer is both here and in the store');
    rmSync(this.#localOf(object) as string);
    const whole = readFileSync(object);
    const rotten = Buffer.from(whole);
    for (let at = 4_000; at < rotten.length; at += 16_384) rotten[at] = (rotten[at] as number) ^ 0x40;
    writeFileSync(object, rotten);
    await this.cluster.up();
    const outcome = await this.ledger.verify().then(
      () => 'the truth',
      (error: unknown) => errorMessage(error),
    );
    assert.doesNotMatch(outcome, /lost|twice|nobody wrote|disagree/);
    assert.ok(
      outcome === 'the truth' || this.cluster.log('pageserver').includes(basename(object)),
      `the log names ${basename(object)}: ${outcome}`,
    );
    this.#log(`F11: with a rotten object: ${outcome.slice(0, 120)}`);
    writeFileSync(object, whole);
    await eventually('whole again', () => this.ledger.verify().then(() => true), 120_000);
    this.ledger.start(2);
    await this.check('F11');
  }

  #localOf(object: string): string | undefined {
    return globSync(join(this.cluster.home, 'data/pageserver/timelines/*/*', basename(object)))[0];
  }
}
