/** Section 7.4: every on-disk file kind, cut at a random point or with one byte flipped while everything is down. The service recovers from its
 *  peers or refuses with an error that names the file; wrong bytes are never served. */
import assert from 'node:assert/strict';
import { existsSync, globSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster, eventually } from '@lakebase/testkit';
import { Ledger } from './ledger.ts';

const flip = (path: string, at: number): void => {
  const bytes = readFileSync(path);
  bytes[at] = (bytes[at] ?? 0) ^ 0x10;
  writeFileSync(path, bytes);
};

describe('damaged files', () => {
  let cluster: Cluster;
  let ledger: Ledger;

  before(async () => {
    cluster = await Cluster.start();
    ledger = new Ledger(cluster);
    await ledger.create();
    ledger.start(2);
    await ledger.progress(200);
    await ledger.stop();
  });
  after(() => cluster[Symbol.asyncDispose]());

  const files = (pattern: string): string[] => globSync(join(cluster.home, 'data', pattern)).sort();

  /** The system works with everything acknowledged, and takes new commits. */
  async function healthy(): Promise<void> {
    await eventually(
      'the ledger is whole',
      async () => {
        await ledger.verify();
        return true;
      },
      90_000,
    );
    ledger.start(1);
    await ledger.progress(5);
    await ledger.stop();
  }

  for (const [what, damage] of [
    ['cut in the middle', (path: string, size: number) => truncateSync(path, Math.floor(size / 2))],
    ['cut inside its header', (path: string) => truncateSync(path, 20)],
    ['with a byte flipped', (path: string, size: number) => flip(path, Math.min(9_000, Math.floor(size / 3)))],
  ] as const) {
    it(`one safekeeper's WAL segment ${what}: the others carry on, nothing acknowledged is lost`, async () => {
      await cluster.stop('SIGKILL');
      for (const service of ['sk1', 'sk2', 'sk3', 'pageserver', 'compute', 'manager', 'proxy'] as const) cluster.kill(service);
      await eventually('all are gone', () => (cluster.computePids().length + cluster.pids('sk2').length === 0 ? true : undefined));
      const segment = files('sk2/*/*/wal/*')[0] as string;
      damage(segment, statSync(segment).size);
      await cluster.up();
      await healthy();
    });
  }

  it("one safekeeper's control file damaged: it says which, the others carry on", async () => {
    await cluster.stop();
    const control = files('sk3/*/*/control')[0] as string;
    const whole = readFileSync(control);
    flip(control, 12);
    const damaged = readFileSync(control);
    await cluster.up();
    await healthy();
    assert.match(cluster.log('sk3'), /control/);
    await cluster.stop();
    // On a slow machine the member has been rebuilt from its peers meanwhile: then the file is not put back over that.
    if (existsSync(control) && readFileSync(control).equals(damaged)) writeFileSync(control, whole);
    await cluster.up();
    await healthy();
  });

  /** Suspended and stopped: all of the pageserver's files of a kind, here and in the object store. */
  async function copies(kind: 'index' | 'image' | 'delta'): Promise<{ local: string[]; objects: string[] }> {
    await cluster.cli(['suspend']);
    await cluster.stop();
    const local = files(kind === 'index' ? 'pageserver/timelines/*/*/index' : `pageserver/timelines/*/*/${kind}-*`);
    assert.ok(local.length > 0, `there is a ${kind} file`);
    const objects = globSync(join(cluster.home, 'objects/projects/*/timelines/*', kind === 'index' ? 'index-g*' : `${kind}-*`));
    return { local, objects };
  }
  /** A layer that was fetched in part has another ending. */
  const layerOf = (path: string): string => basename(path).replace(/\.part$/, '');
  const named = (text: string, paths: readonly string[]): boolean => paths.some((path) => text.includes(layerOf(path)));
  /** What was there before. */
  function spoil(path: string, every: number): Buffer {
    const bytes = readFileSync(path);
    const original = Buffer.from(bytes);
    for (let at = 40; at < bytes.length; at += every) bytes[at] = (bytes[at] ?? 0) ^ 0x20;
    writeFileSync(path, bytes);
    return original;
  }

  it("the pageserver's image damaged, the object whole: fetched anew, and said", async () => {
    const { local, objects } = await copies('image');
    for (const path of local) assert.ok(named(objects.join(' '), [path]), 'the object store has it');
    for (const path of local) spoil(path, 8_192);
    await cluster.up();
    await healthy();
    assert.ok(named(cluster.log('pageserver'), local), "the pageserver's log names it");
  });

  for (const kind of ['index', 'image', 'delta'] as const) {
    it(`the pageserver's ${kind} damaged in every copy: an error that names it, never a wrong page; whole again when the file is`, async () => {
      const { local, objects } = await copies(kind);
      const originals = [...local, ...objects].map((path) => [path, spoil(path, kind === 'index' ? 64 : 8_192)] as const);
      await cluster.up();
      await assert.rejects(async () => {
        const client = await cluster.connect({ connectionTimeoutMillis: 60_000 });
        try {
          await client.query('SELECT count(*), max(filler) FROM ledger');
        } finally {
          await client.end();
        }
      });
      assert.ok(named(cluster.log('pageserver'), local), "the pageserver's log names it");
      await cluster.stop();
      for (const [path, bytes] of originals) writeFileSync(path, bytes);
      await cluster.up();
      await healthy();
    });
  }
});
