/** The directory under what happens to machines: kill -9 in the middle of puts, several processes, a disk that is not there, leftovers. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, test } from 'node:test';
import { isCode } from '@lakebase/base';
import { DIRECTORY_MARKER, DirectoryStore } from './directory-store.ts';
import { withMachineLock } from './machine-lock.ts';
import { removeLeftovers, temporaryName } from './temporary-files.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-objectstore-crash-'));
after(() => rmSync(dir, { recursive: true, force: true }));

const BLOCK = 300_000;
/** Content that says whether it is whole: its hash in front. */
const PROGRAM = `
  import { createHash, randomBytes } from 'node:crypto';
  import { writeFileSync } from 'node:fs';
  import { DirectoryStore } from ${JSON.stringify(join(import.meta.dirname, 'directory-store.ts'))};
  const [root, name, mode] = process.argv.slice(1);
  const store = new DirectoryStore(root);
  const content = () => { const body = randomBytes(${BLOCK}); return Buffer.concat([createHash('sha256').update(body).digest(), body]); };
  if (mode === 'puts') for (let i = 0; ; i++) {
    const file = root + '-' + name;
    if (i % 3 === 0) await store.put(name + '/' + i, content(), { ifAbsent: true });
    else if (i % 3 === 1) { const bytes = content(); writeFileSync(file, bytes); await store.put('shared/' + (i % 5), { path: file, size: bytes.length }); }
    else { const { tag } = await store.head('matched'); await store.put('matched', content(), { ifMatch: tag }).catch((e) => { if (e.code !== 'CONFLICT') throw e; }); }
    process.stdout.write(i + '\\n');
  }
  for (let i = 0; i < 40; ) {
    const { bytes, tag } = await store.get('counter');
    await store.put('counter', Buffer.from(String(Number(bytes) + 1)), { ifMatch: tag }).then(() => i++, (e) => { if (e.code !== 'CONFLICT') throw e; });
  }
`;

function run(root: string, name: string, mode: string): ChildProcess {
  const args = [
    '--conditions=lakebase-source',
    '--disable-warning=ExperimentalWarning',
    '--input-type=module',
    '-e',
    PROGRAM,
    root,
    name,
    mode,
  ];
  return spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'], cwd: import.meta.dirname });
}

test('kill -9 in the middle of puts of several processes: every object is whole or absent, and what was answered is there', async () => {
  const root = join(dir, 'killed');
  const store = new DirectoryStore(root);
  await store.put('matched', whole('first'));
  for (let round = 0; round < 4; round++) {
    const children = ['x', 'y'].map((n) => ({ name: `${n}${round}`, answered: -1, child: run(root, `${n}${round}`, 'puts') }));
    // Killed at an odd moment after a few answers, each another.
    await Promise.all(
      children.map(async (c, i) => {
        const exit = once(c.child, 'exit');
        for await (const line of createInterface({ input: c.child.stdout! })) {
          c.answered = Number(line);
          if (c.answered >= 4 + 3 * i + round && c.child.exitCode === null)
            setTimeout(() => c.child.kill('SIGKILL'), round * 2 + i).unref();
        }
        await exit;
        assert.equal(c.child.signalCode, 'SIGKILL');
      }),
    );
    const keys = (await store.list('')).objects.map((o) => o.key);
    for (const key of keys) assert.ok(isWhole((await store.get(key)).bytes), key);
    for (const { name, answered } of children)
      for (let i = 0; i <= answered; i += 3) assert.ok(keys.includes(`${name}/${i}`), `${name}/${i} was answered`);
    // The lock of a dead process holds nobody up.
    const { tag } = await store.head('matched');
    await store.put('matched', whole(`round ${round}`), { ifMatch: tag });
  }
  await new DirectoryStore(root).put('after', whole('after'));
  assert.deepEqual(readdirSync(join(root, '.tmp')), [], 'what they left is gone');
});

test('increments under ifMatch of several processes are all there', async () => {
  const root = join(dir, 'counted');
  await new DirectoryStore(root).put('counter', Buffer.from('0'));
  const children = ['a', 'b', 'c'].map((name) => run(root, name, 'count'));
  const exits = await Promise.all(children.map((child) => once(child, 'exit')));
  assert.deepEqual(
    exits.map(([code]) => code as number),
    [0, 0, 0],
  );
  assert.equal((await new DirectoryStore(root).get('counter')).bytes.toString(), '120');
});

test('a disk that is not there is not an empty store', async () => {
  const root = join(dir, 'mounted');
  const store = new DirectoryStore(root);
  await assert.rejects(store.get('a'), (e: unknown) => isCode(e, 'NOT_FOUND'), 'a new store is empty');
  await store.put('a', Buffer.from('x'));
  for (const unmount of [() => renameSync(root, `${root}-away`), () => mkdirSync(root)]) {
    unmount();
    const calls = [
      () => store.get('a'),
      () => store.head('a'),
      () => store.stream('a'),
      () => store.list(''),
      () => store.put('b', Buffer.from('x')),
      () => store.delete(['a']),
    ];
    for (const call of calls) await assert.rejects(call, (e: unknown) => isCode(e, 'UNAVAILABLE') && /mounted/.test(e.message));
    assert.equal(existsSync(join(root, 'b')), false);
  }
  rmSync(root, { recursive: true });
  renameSync(`${root}-away`, root);
  assert.equal((await store.get('a')).bytes.toString(), 'x');
  assert.ok(existsSync(join(root, DIRECTORY_MARKER)));
});

test('leftovers: of dead processes at once, of others only when they are old, of the living never', async () => {
  const at = join(dir, 'leftovers');
  mkdirSync(at);
  const own = temporaryName();
  const [machine, , , random] = own.split('-') as [string, string, string, string];
  const names = {
    own,
    dead: `${machine}-999999999-1-${random}`,
    recycled: `${machine}-${process.pid}-1-${random}`,
    foreign: `00000000-1-1-${random}`,
    old: 'unknown',
  };
  for (const name of Object.values(names)) writeFileSync(join(at, name), '');
  const yesterday = Date.now() / 1_000 - 2 * 86_400;
  utimesSync(join(at, names.old), yesterday, yesterday);
  assert.equal(await removeLeftovers(at), 3);
  assert.deepEqual(readdirSync(at).sort(), [names.foreign, names.own].sort());
});

test('an object where others have a directory, and the other way round, are refused', async () => {
  const store = new DirectoryStore(join(dir, 'nested'));
  await store.put('a/b', Buffer.from('x'));
  await assert.rejects(store.put('a', Buffer.from('x')), (e: unknown) => isCode(e, 'INVALID_ARGUMENT'));
  await assert.rejects(store.put('a/b/c', Buffer.from('x')), (e: unknown) => isCode(e, 'INVALID_ARGUMENT'));
  await store.delete(['a', 'a/b/c']);
  assert.equal((await store.get('a/b')).bytes.toString(), 'x');
});

test('the lock: one at a time, and a wait that is too long ends', async () => {
  let inside = 0;
  await Promise.all(
    Array.from({ length: 10 }, () =>
      withMachineLock('test', 20_000, async () => {
        assert.equal(++inside, 1);
        await new Promise((r) => setImmediate(r));
        inside--;
      }),
    ),
  );
  const held = Promise.withResolvers<void>();
  const holder = withMachineLock('held', 1_000, () => held.promise);
  await assert.rejects(
    withMachineLock('held', 30, async () => assert.fail('two have it')),
    (e: unknown) => isCode(e, 'UNAVAILABLE'),
  );
  held.resolve();
  await holder;
  await withMachineLock('held', 1_000, async () => {});
});

function whole(text: string): Buffer {
  const body = Buffer.from(text);
  return Buffer.concat([createHash('sha256').update(body).digest(), body]);
}
function isWhole(bytes: Buffer): boolean {
  return createHash('sha256').update(bytes.subarray(32)).digest().equals(bytes.subarray(0, 32));
}
