import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { getPriority } from 'node:os';
import { test } from 'node:test';
import { NICE, demoteHelpers } from './slice.ts';

test("V8's helpers stand behind the thread that serves reads, and only they do", { skip: process.platform !== 'linux' }, () => {
  const before = getPriority();
  const demoted = demoteHelpers();
  // Fails where a new Node names its threads otherwise: then the measure is gone without a word.
  assert.ok(demoted > 0, 'no thread is called V8Worker');
  for (const task of readdirSync('/proc/self/task')) {
    const helper = readFileSync(`/proc/self/task/${task}/comm`, 'utf8').trim() === 'V8Worker';
    assert.equal(getPriority(Number(task)), helper ? NICE : before);
  }
});
