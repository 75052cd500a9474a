/** Issue 4, sections 7 and 8, as an operator meets them: the drill, the dry run of a key, the audit log, all by the command line. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Cluster } from '@lakebase/testkit';
import { PublicApi } from './key-scene.ts';

const BOUND_MS = 15_000;

interface AuditLine {
  readonly sequence: number;
  readonly time: string;
  readonly actor: string;
  readonly action: string;
  readonly subject: string;
  readonly result: string;
  readonly previous: string;
}

describe('drill', () => {
  let cluster: Cluster;
  before(async () => {
    cluster = await Cluster.start();
  });
  after(() => cluster?.[Symbol.asyncDispose]());

  /** What a drill makes and has to take away again. */
  async function belongings(): Promise<Record<string, unknown>> {
    const account = new PublicApi(cluster);
    const list = async (path: string): Promise<unknown> => (await account.raw('GET', `accounts/default/${path}`)).body;
    return {
      keys: await list('customer-managed-keys'),
      workspaces: await list('workspaces'),
      keyFiles: readdirSync(join(cluster.home, 'keys')).sort(),
      computes: cluster.computePids().length,
    };
  }

  it('revoke: takes a key away, sees nothing served, gives it back, and leaves nothing behind', async () => {
    const before = await belongings();
    const { code, stdout, stderr } = await cluster.cli(['drill', 'revoke', '--json']);
    assert.equal(code, 0, stderr);
    const times = JSON.parse(stdout) as Record<string, number>;
    const of = (pattern: RegExp): number => Object.entries(times).find(([what]) => pattern.test(what))?.[1] ?? Number.NaN;
    assert.ok(of(/session is ended/) < BOUND_MS, stderr);
    assert.ok(of(/given back/) < BOUND_MS, stderr);
    for (const line of stderr.trim().split('\n')) process.stdout.write(`# ${line}\n`);
    assert.match(stderr, /REVOKED/);
    assert.ok(!stderr.includes('clean-up'), stderr);
    assert.deepEqual(await belongings(), before);
    const reports = (await new PublicApi(cluster).call('GET', 'accounts/default/shred-reports'))['shred_reports'] as unknown[];
    assert.equal(reports.length, 1, 'the keys of the scratch project were destroyed');
    assert.match((await cluster.cli(['encryption', 'shredded'])).stdout, /drill-[0-9a-f]{6}.* 1 \(/);
  });

  it('keys check: exit code 1 for a key that cannot be used, and what to do about it; 0 for one that can', async () => {
    const missing = await cluster.cli(['keys', 'check', '--local', 'missing']);
    assert.equal(missing.code, 1);
    assert.match(missing.stderr, /cannot be used: .*KeyFileMissing/);
    assert.match(missing.stdout, /DENIED/);
    assert.equal((await cluster.cli(['keys', 'create-local', 'fine'])).code, 0);
    const fine = await cluster.cli(['keys', 'check', '--local', 'fine']);
    assert.equal(fine.code, 0, fine.stderr);
    const nonsense = await cluster.cli(['keys', 'check', '--aws', 'my-key']);
    assert.equal(nonsense.code, 1);
    assert.match(nonsense.stderr, /must be the ARN/);
  });

  it('audit: lines whose chain holds, that tell of the drill and hold no secret', async () => {
    const { code, stdout, stderr } = await cluster.cli(['audit']);
    assert.equal(code, 0, stderr);
    const texts = stdout.split('\n').filter((line) => line !== '');
    const lines = texts.map((text) => JSON.parse(text) as AuditLine);
    for (const [i, line] of lines.entries()) {
      assert.equal(line.sequence, i + 1);
      const before =
        i === 0
          ? '0'.repeat(64)
          : createHash('sha256')
              .update(texts[i - 1] as string)
              .digest('hex');
      assert.equal(line.previous, before, `line ${line.sequence} does not follow from the one before`);
      assert.ok(!Number.isNaN(Date.parse(line.time)) && line.actor !== '', texts[i]);
    }
    const told = lines.map((l) => `${l.action} ${l.result}`);
    for (const what of [
      'CREATE_KEY_CONFIGURATION OK',
      'CREATE_WORKSPACE OK',
      'KEY_CHECK OK',
      'KEY_CHECK DENIED',
      'KEY_CREATE OK',
      'KMS_WRAP OK',
      'KMS_UNWRAP OK',
      'KMS_UNWRAP DENIED',
      'STATE_CHANGE DENIED',
      'STATE_CHANGE OK',
      'SHRED OK',
      'DELETE_KEY_CONFIGURATION OK',
    ])
      assert.ok(told.includes(what), `${what} in ${JSON.stringify([...new Set(told)])}`);
    assert.ok(lines.some((l) => l.action === 'TERMINATE_COMPUTES'));
    for (const file of ['secret', 'admin-token', 'keys/root.key', 'keys/fine.key'])
      assert.ok(!stdout.includes(readFileSync(join(cluster.home, file), 'utf8').trim()), `the log shows ${file}`);
    const some = lines[3] as AuditLine;
    const verified = await cluster.cli(['audit', '--verify']);
    assert.match(verified.stdout, /the chain of \d+ lines holds, 1 to \d+/);
    const exported = join(cluster.home, 'exported.jsonl');
    writeFileSync(exported, stdout);
    assert.equal((await cluster.cli(['audit', '--verify', exported])).code, 0);
    writeFileSync(exported, texts.filter((_, i) => i !== 2).join('\n'));
    const cut = await cluster.cli(['audit', '--verify', exported]);
    assert.equal(cut.code, 1);
    assert.match(cut.stderr, /line 4 does not follow from line 2/);
    const later = await cluster.cli(['audit', '--after', String(some.sequence)]);
    assert.equal(later.stdout.split('\n')[0], texts[4]);
  });
});
