import assert from 'node:assert/strict';
import { mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { OpenFile } from './layer-bytes.ts';
import { AROUND_BYTES, ReadAround } from './read-around.ts';

test('one window at a time, each once, and a file that is closed meanwhile stays open until its read has ended', async () => {
  const dir = mkdtempSync(join(tmpdir(), 'lb-around-'));
  try {
    writeFileSync(join(dir, 'layer'), Buffer.alloc(3 * AROUND_BYTES));
    const around = new ReadAround();
    const file = new OpenFile(openSync(join(dir, 'layer'), 'r'));
    const users: number[] = [];
    let open = 0;
    const watched = {
      fd: file.fd,
      use: () => void users.push(++open),
      unuse: () => {
        open--;
        ended.resolve();
      },
    };
    let ended = Promise.withResolvers<void>();
    around.note(watched as never, 1, 10);
    around.note(watched as never, 1, 10 + AROUND_BYTES);
    assert.deepEqual([around.count, users], [1, [1]], 'the second one while the first is under way is left out');
    await ended.promise;
    ended = Promise.withResolvers();
    around.note(watched as never, 1, 20);
    assert.equal(around.count, 1, 'this window was read');
    for (let tries = 0; around.count === 1; tries++) {
      assert.ok(tries < 1_000);
      await new Promise((resolve) => setTimeout(resolve, 1));
      around.note(watched as never, 2, 20);
    }
    await ended.promise;
    assert.equal(open, 0);
    file.close();
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
