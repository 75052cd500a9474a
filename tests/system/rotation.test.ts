/** Issue 4, section 6: a new KEK and a new version of the customer key, under load, with processes killed in the middle. No client notices, no
 *  byte of data is written again, and what became old can go. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, relative } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { ComputeStatus } from '@lakebase/api';
import { FakeVault } from '@lakebase/kms/testing';
import { Cluster, ClusterInternals, type ServiceName, eventually } from '@lakebase/testkit';
import { KeyedProject } from './key-scene.ts';
import { Ledger } from './ledger.ts';

interface Kek {
  readonly version: number;
  readonly state: 'CURRENT' | 'OLD' | 'DESTROYED';
  readonly key_version: string;
}
const SAFEKEEPERS = ['sk1', 'sk2', 'sk3'] as const;
const SEGMENT = /^[0-9A-F]{24}$/;
/** Where the KEK version of the reference in a header is: docs/formats/layer.md, wal-segment.md, envelope.md. */
const KEK_OF = { layer: 107, segment: 69 } as const;

describe('rotation', () => {
  const fake = new FakeVault();
  let cluster: Cluster;
  let project: KeyedProject;
  let ledger: Ledger;

  before(async () => {
    await fake.listen();
    const home = mkdtempSync(join(tmpdir(), 'lb-sys-'));
    writeFileSync(join(home, 'keymanager.json'), JSON.stringify({ versionCheckMs: 500, probeIntervalMs: 1_000 }));
    cluster = await Cluster.start({ home });
    const { options } = fake.createKey('customer');
    const vault = { address: fake.url, mount: 'transit', key_name: 'customer' };
    project = await KeyedProject.under(cluster, 'turning', { vault_key_info: vault, options: { token: options?.['token'] } });
    ledger = new Ledger(project);
    await ledger.create();
    const client = await project.connect();
    // More than a segment of WAL that does not compress away, in layers.
    await client.query(`CREATE TABLE bulk AS SELECT n, sha512(n::text::bytea)::text AS text FROM generate_series(1, 120000) n`);
    await client.end();
    await flush();
    ledger.start(2);
    await ledger.progress(30);
  });
  after(async () => {
    await ledger?.stop();
    await cluster?.[Symbol.asyncDispose]();
    await fake.close();
  });

  const keks = async (): Promise<Kek[]> => (await project.encryption())['keks'] as Kek[];
  const rotate = async (): Promise<number> =>
    (await project.account.call('POST', `${project.encryptionPath}/rotate`))['kek_version'] as number;
  /** Every KEK before `version` is destroyed: every storage service has said that nothing needs it. */
  const settled = (version: number): Promise<true> =>
    eventually(`KEKs before ${version} are destroyed`, async () => {
      const all = await keks();
      return all.length === version && all.every((k) => k.state === (k.version < version ? 'DESTROYED' : 'CURRENT')) ? true : undefined;
    });

  function timelines(): string[] {
    const dir = join(cluster.home, 'data', 'pageserver', 'timelines', project.uid);
    return readdirSync(dir).map((t) => join(dir, t));
  }
  async function flush(): Promise<void> {
    const { pageserver } = new ClusterInternals(cluster);
    for (const dir of timelines()) await pageserver.checkpoint(project.uid as never, basename(dir) as never);
  }
  const layers = (): string[] => timelines().flatMap((dir) => filesIn(dir, /\.layer$/));
  const segments = (): string[] =>
    SAFEKEEPERS.flatMap((sk) =>
      readdirSync(join(cluster.home, 'data', sk, project.uid)).flatMap((t) =>
        filesIn(join(cluster.home, 'data', sk, project.uid, t, 'wal'), SEGMENT),
      ),
    );
  /** Layers in the object store. */
  function stored(): string[] {
    const dir = join(cluster.home, 'objects', 'projects', project.uid, 'timelines');
    if (!existsSync(dir)) return [];
    return readdirSync(dir).flatMap((t) => filesIn(join(dir, t), /\.layer$/));
  }
  /** Of this project: the default one may run too. */
  async function compute(): Promise<ComputeStatus> {
    const { computes } = await new ClusterInternals(cluster).host.list();
    const found = computes.find((c) => c.state === 'RUNNING' && c.endpointId === project.endpointUid);
    assert.ok(found !== undefined);
    return found;
  }
  async function checked(): Promise<void> {
    await ledger.progress(10);
    await ledger.verify();
    const client = await project.connect();
    const { rows } = await client.query('SELECT count(*)::int AS n, count(DISTINCT text)::int AS different FROM bulk');
    assert.deepEqual(rows, [{ n: 120_000, different: 120_000 }]);
    await client.end();
  }

  it('a new KEK: no client error, no byte of data written again, the old KEK destroyed, new objects under the new one', async () => {
    ledger.errors.clear();
    const before = new Map([...layers(), ...segments()].map((file) => [file, contentOf(file)]));
    const old = new Set(layers());
    const began = performance.now();
    assert.equal(await rotate(), 2);
    const answered = performance.now() - began;
    await settled(2);
    process.stdout.write(
      `# new KEK in ${Math.round(answered)} ms; every reference of it wrapped again and the old KEK destroyed after ${Math.round(performance.now() - began)} ms\n`,
    );
    let [files, bytes] = [0, 0];
    const here = new Set([...layers(), ...segments()]);
    for (const [file, was] of before) {
      if (!here.has(file)) continue; // merged, or trimmed
      assert.equal(prefixHash(file, was.bytes), was.hash, `${relative(cluster.home, file)} was written again`);
      files++;
      bytes += was.bytes;
    }
    assert.ok(files >= 4, `${files} of ${before.size} files are still there`);
    process.stdout.write(`# ${files} files with ${(bytes / 2 ** 20).toFixed(0)} MB are byte for byte what they were\n`);

    await ledger.progress(20);
    await flush();
    const fresh = layers().filter((file) => !old.has(file));
    assert.ok(fresh.length > 0);
    for (const file of fresh) assert.equal(kekVersion(file, 'layer'), 2, file);
    // What has a name by now may have been prepared with a key of before.
    const next = Math.max(...segments().map(segmentNumber)) + 1;
    const admin = await new ClusterInternals(cluster).admin(await compute());
    for (let i = 0; i < 2; i++) await admin.query("SELECT pg_logical_emit_message(true, 'x', 'x'), pg_switch_wal()");
    await admin.end();
    await eventually('a WAL segment begun after the rotation on every safekeeper', () =>
      segments().filter((file) => segmentNumber(file) === next).length === SAFEKEEPERS.length ? true : undefined,
    );
    for (const file of segments()) if (segmentNumber(file) >= next) assert.equal(kekVersion(file, 'segment'), 2, file);
    assert.deepEqual([...ledger.errors], []);
    await checked();
  });

  const kills: readonly { readonly when: 'while the key manager turns' | 'when it has answered'; readonly who: readonly ServiceName[] }[] =
    [
      { when: 'while the key manager turns', who: ['keymanager'] },
      { when: 'when it has answered', who: ['pageserver', 'sk1'] },
      { when: 'when it has answered', who: ['keymanager', 'sk2', 'sk3'] },
    ];
  for (const { when, who } of kills)
    it(`kill -9 of ${who.join(', ')} ${when}: it completes, and nothing is lost`, async () => {
      const from = (await keks()).length;
      if (when === 'when it has answered') {
        await rotate();
        for (const name of who) cluster.kill(name);
      } else {
        const turning = project.account.raw('POST', `${project.encryptionPath}/rotate`);
        for (const name of who) cluster.kill(name);
        await turning; // whatever it says: the old keys are there, or the new
        await eventually('the key manager is back', () => keks());
        const now = (await keks()).length;
        assert.ok(now === from || now === from + 1);
        if (now === from) await rotate();
      }
      await settled(from + 1);
      await checked();
    });

  it('re-encryption: every old layer, segment and object in the store under fresh data keys, while clients write and processes are killed', async () => {
    const from = (await keks()).length;
    const before = new Set([...layers(), ...segments(), ...stored()]);
    const began = performance.now();
    const asked = await project.account.call('POST', `${project.encryptionPath}/re-encrypt`);
    assert.equal(asked['re_encryption']['state'], 'RUNNING');
    assert.equal(asked['kek_version'], from + 1);
    for (const name of ['pageserver', 'sk2'] as const) cluster.kill(name);
    const progress = await eventually(
      'everything is encrypted anew',
      async () => {
        const now = (await project.encryption())['re_encryption'] as Record<string, unknown>;
        return now['state'] === 'DONE' ? now : undefined;
      },
      120_000,
    );
    await settled(from + 1);
    process.stdout.write(
      `# ${String(progress['objects_done'])} objects, ${(Number(progress['bytes_written']) / 2 ** 20).toFixed(0)} MB encrypted anew in ${Math.round(performance.now() - began)} ms, two kills included\n`,
    );
    assert.ok(before.size > 4);
    for (const file of layers()) assert.ok(kekVersion(file, 'layer') > from, file);
    for (const file of segments()) assert.ok(kekVersion(file, 'segment') > from, file);
    // What is superseded leaves the store after a confirmation.
    await eventually('no old layer is in the store', () => (stored().every((file) => kekVersion(file, 'layer') > from) ? true : undefined));
    await checked();
    // Nothing of it hangs on what processes have in memory.
    for (const name of ['keymanager', 'pageserver', ...SAFEKEEPERS] as const) cluster.kill(name);
    await checked();
  });

  it('a new version of the customer key is noticed, KEKs are wrapped with it, and the old version may go', async () => {
    ledger.errors.clear();
    const version = (await keks()).length;
    const was = segments().map((file) => [file, contentOf(file)] as const);
    const began = performance.now();
    fake.rotate('customer');
    await eventually('the new version is used', async () => ((await keks()).at(-1)?.key_version === '2' ? true : undefined));
    process.stdout.write(`# new version of the customer key in use after ${Math.round(performance.now() - began)} ms\n`);
    for (const [file, { bytes, hash }] of was) assert.equal(prefixHash(file, bytes), hash);
    fake.minDecryptionVersion = 2;
    const check = await project.account.call('POST', `${project.encryptionPath}/check`);
    assert.equal(check['state'], 'ACTIVE');
    assert.deepEqual([...ledger.errors], []);
    // Nothing that anybody still has in memory helps now.
    for (const name of ['keymanager', 'pageserver', ...SAFEKEEPERS] as const) cluster.kill(name);
    await checked();
    assert.deepEqual([(await keks()).length, (await project.encryption())['state']], [version, 'ACTIVE']);
    await ledger.stop();
  });
});

function filesIn(dir: string, pattern: RegExp): string[] {
  return readdirSync(dir)
    .filter((name) => pattern.test(name))
    .map((name) => join(dir, name));
}

/** What is written so far: a segment is filled with zeros ahead of its frames. */
function contentOf(file: string): { readonly bytes: number; readonly hash: string } {
  const content = readFileSync(file);
  let bytes = content.length;
  if (SEGMENT.test(basename(file))) while (bytes > 0 && content[bytes - 1] === 0) bytes--;
  return { bytes, hash: sha256(content.subarray(0, bytes)) };
}
function prefixHash(file: string, bytes: number): string {
  if (statSync(file).size < bytes) return 'shorter';
  return sha256(readFileSync(file).subarray(0, bytes));
}
const segmentNumber = (file: string): number => {
  const name = basename(file);
  return Number.parseInt(name.slice(8, 16), 16) * 256 + Number.parseInt(name.slice(16), 16);
};
const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
const kekVersion = (file: string, kind: keyof typeof KEK_OF): number => readFileSync(file).readUInt32BE(KEK_OF[kind]);
