/** Commands of the cache worker: a line each, one after another whoever asks, and what an answer means. The program is a shell script. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLogger } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import { CacheWorker } from './cache-worker.ts';

/** Answers `begin` from `busy` first, sweeps with the number of their entry; notes a command before its answer, and that it was answered. */
const SCRIPT = (said: string): string => `#!/bin/sh
busy=1
while read -r command rest; do
  echo "$command $rest" >> ${said}
  case "$command" in
    begin) if [ $busy = 1 ]; then answer=busy; busy=0; else answer='ok 12'; fi ;;
    next) answer=$([ "$rest" = 12 ] && echo 'entry 7' || echo end) ;;
    sweep) set -- $rest; answer="done $2" ;;
    fetch) answer=full ;;
    open) answer=$([ "$rest" = 12 ] && echo ok || echo 'error 116') ;;
  esac
  echo . >> ${said}
  echo "$answer"
done
`;

test('commands are lines, one after another, and answers are taken for what they are', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'lb-worker-'));
  const said = join(dir, 'said');
  const program = join(dir, 'program');
  writeFileSync(program, SCRIPT(said), { mode: 0o755 });
  const worker = new CacheWorker({ program, env: {}, scratchKey: () => null, cacheBytes: null, log: silentLogger });
  worker.start();
  try {
    const got = await Promise.all([
      worker.beginRound(),
      worker.beginRound(),
      worker.fetch(1, 2, 3),
      worker.openRound(12).then(() => 'open'),
      worker.nextEntry(12),
      worker.nextEntry(11),
      worker.sweep(12, { entry: 7, limit: 90, lsn: 0x5_0000_1000 as Lsn, openFrom: undefined }),
      worker.sweep(12, { entry: 8, limit: 91, lsn: 0x5_0000_1000 as Lsn, openFrom: 3_000_000_000 }),
    ]);
    assert.deepEqual(got, [undefined, 12, 'full', 'open', 7, undefined, 7, 8]);
    await assert.rejects(worker.openRound(11), { code: 'UNAVAILABLE', message: /error 116/ });
    const lines = readFileSync(said, 'utf8').trim().split('\n');
    assert.deepEqual(
      lines.filter((line) => line !== '.').map((line) => line.trim()),
      [
        ...['begin', 'begin', 'fetch 1 2 3', 'open 12', 'next 12', 'next 11', 'sweep 12 7 90 21474840576 0 0'],
        ...['sweep 12 8 91 21474840576 1 3000000000', 'open 11'],
      ],
    );
    assert.ok(lines.every((line, i) => (line === '.') === (i % 2 === 1)));
  } finally {
    worker.kill();
    rmSync(dir, { recursive: true });
  }
});
