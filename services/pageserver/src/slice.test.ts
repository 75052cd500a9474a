import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync, readdirSync } from 'node:fs';
import { getPriority } from 'node:os';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { NICE, backgroundProcessors, demoteHelpers } from './slice.ts';

const linux = { skip: process.platform !== 'linux' };
const allowed = (status: string): string | undefined => /^Cpus_allowed_list:\s*(\S+)$/m.exec(status)?.[1];
const own = (path: string): string => readFileSync(path, 'utf8');

test("V8's helpers stand behind the thread that serves reads, and only they do", linux, () => {
  const before = getPriority();
  const [all, rest] = [allowed(own('/proc/self/status')), backgroundProcessors(own('/proc/self/status'))];
  const demoted = demoteHelpers();
  // Fails where a new Node names its threads otherwise: then the measure is gone without a word.
  assert.ok(demoted > 0, 'no thread is called V8Worker');
  const pins = rest !== undefined && spawnSync('taskset', ['--version']).error === undefined;
  for (const task of readdirSync('/proc/self/task')) {
    const helper = own(`/proc/self/task/${task}/comm`).trim() === 'V8Worker';
    assert.equal(getPriority(Number(task)), helper ? NICE : before);
    assert.equal(allowed(own(`/proc/self/task/${task}/status`)), helper && pins ? rest : all);
  }
});

test('a thread stands behind by itself', linux, async () => {
  const code = `
    import { readFileSync } from 'node:fs';
    import { getPriority } from 'node:os';
    import { parentPort } from 'node:worker_threads';
    const { standBehind } = await import(${JSON.stringify(new URL('slice.ts', import.meta.url).href)});
    standBehind();
    parentPort.postMessage({ nice: getPriority(0), status: readFileSync('/proc/thread-self/status', 'utf8') });`;
  const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`));
  const { nice, status } = await new Promise<{ nice: number; status: string }>((resolve, reject) => {
    worker.once('message', resolve);
    worker.once('error', reject);
  });
  assert.equal(nice, NICE);
  const rest = backgroundProcessors(own('/proc/self/status'));
  if (rest !== undefined && spawnSync('taskset', ['--version']).error === undefined) assert.equal(allowed(status), rest);
  assert.equal(getPriority(), getPriority(process.pid));
});

test('the background has all processors but the first', () => {
  const of = (list: string): string | undefined =>
    backgroundProcessors(`Name:\tnode\nCpus_allowed:\tff\nCpus_allowed_list:\t${list}\nMems:\t0\n`);
  assert.equal(of('0-1'), '1');
  assert.equal(of('0-7'), '1-7');
  assert.equal(of('2-5,8,10-11'), '3-5,8,10-11');
  assert.equal(of('3,5'), '5');
  assert.equal(of('0'), undefined);
  assert.equal(of('4-4'), undefined);
  assert.equal(backgroundProcessors('Name:\tnode\n'), undefined);
});
