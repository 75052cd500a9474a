/** The pool gives memory back to use only when nothing here can read it any more. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { ChunkPool } from './chunk-pool.ts';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Collects until `done`, as the registry tells of what was collected some turns later. */
async function collectUntil(done: () => boolean): Promise<boolean> {
  for (let i = 0; i < 50 && !done(); i++) {
    collect();
    await nextTurn();
  }
  return done();
}

test('memory nobody holds is used again', async () => {
  const pool = new ChunkPool(4096);
  const fill = (): void => void Buffer.from(pool.take()).fill(7);
  fill();
  assert.ok(await collectUntil(() => pool.free === 1));
  assert.equal(pool.take().byteLength, 4096);
  assert.equal(pool.reused, 1);
});

test('a view of a part keeps the whole block', async () => {
  const pool = new ChunkPool(4096);
  const view = ((): Buffer => Buffer.from(pool.take()).fill(7).subarray(100, 108))();
  assert.equal(await collectUntil(() => pool.free > 0), false);
  Buffer.from(pool.take()).fill(9);
  assert.deepEqual([...view], [7, 7, 7, 7, 7, 7, 7, 7]);
});
