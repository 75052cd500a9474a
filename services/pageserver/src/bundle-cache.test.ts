import assert from 'node:assert/strict';
import { it } from 'node:test';
import type { Lsn } from '@lakebase/ids';
import { BundleCache } from './bundle-cache.ts';

it('a bundle is good for its LSN only, and the least recently used goes first', () => {
  const cache = new BundleCache(100);
  const bytes = Buffer.alloc(40);
  cache.set('a', 8 as Lsn, bytes);
  cache.set('b', 8 as Lsn, bytes);
  assert.equal(cache.get('a', 8 as Lsn), bytes);
  cache.set('c', 8 as Lsn, bytes);
  assert.equal(cache.get('b', 8 as Lsn), undefined);
  assert.equal(cache.get('a', 16 as Lsn), undefined, 'the head has moved');
  assert.equal(cache.get('a', 8 as Lsn), undefined, 'and what was built before is gone');
  cache.set('d', 8 as Lsn, Buffer.alloc(101));
  assert.equal(cache.get('d', 8 as Lsn), undefined, 'larger than the whole cache');
  assert.equal(cache.get('c', 8 as Lsn), bytes);
});
