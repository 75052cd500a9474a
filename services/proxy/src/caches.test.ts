import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import { CancelRegistry } from './cancel-registry.ts';
import { FailureLimit } from './failure-limit.ts';
import { StaleCache } from './stale-cache.ts';

const down = (): Promise<never> => Promise.reject(new LakebaseError('UNAVAILABLE', 'down'));

describe('StaleCache', () => {
  it('shares calls, keeps fresh answers, and uses old ones only when there is no answer', async () => {
    let now = 0,
      calls = 0;
    const cache = new StaleCache<number>({ freshMs: 10, staleMs: 100, patienceMs: 1_000, now: () => now });
    const load = async (): Promise<number> => ++calls;
    assert.deepEqual(await Promise.all([cache.get('k', load), cache.get('k', load)]), [1, 1]);
    assert.equal(await cache.get('k', down), 1);
    now = 10;
    assert.equal(await cache.get('k', load), 2);
    now = 50;
    assert.equal(await cache.get('k', down), 2);
    await assert.rejects(
      cache.get('k', async () => {
        throw new LakebaseError('NOT_FOUND', 'gone');
      }),
      { code: 'NOT_FOUND' },
    );
    await assert.rejects(cache.get('k', down), { code: 'UNAVAILABLE' }, 'a refusal replaces the old answer');
    await cache.get('k', load);
    now = 200;
    await assert.rejects(cache.get('k', down), { code: 'UNAVAILABLE' }, 'too old');
  });

  it('does not wait long for an answer when it has an old one', async () => {
    const cache = new StaleCache<number>({ freshMs: 0, staleMs: 1e9, patienceMs: 5 });
    cache.set('k', 7);
    assert.equal(await cache.get('k', () => new Promise(() => {})), 7);
  });

  it('is bounded', () => {
    const cache = new StaleCache<number>({ freshMs: 0, staleMs: 1, patienceMs: 1, entriesMax: 2 });
    for (const k of ['a', 'b', 'c']) cache.set(k, 1);
    assert.deepEqual(
      ['a', 'b', 'c'].map((k) => cache.peek(k)),
      [undefined, 1, 1],
    );
  });
});

describe('FailureLimit', () => {
  it('refuses after too many failures, forgets with time, and one address does not lock another out', () => {
    let now = 0;
    const limit = new FailureLimit({ perRoleMax: 3, perAddressMax: 5, forgetMs: 1_000, now: () => now });
    for (let i = 0; i < 3; i++) {
      assert.equal(limit.retryAfter('a', 'r'), 0);
      limit.failed('a', 'r');
    }
    assert.equal(limit.retryAfter('a', 'r'), 1_000);
    assert.equal(limit.retryAfter('b', 'r'), 0);
    assert.equal(limit.retryAfter('a', 'other'), 0);
    for (let i = 0; i < 3; i++) limit.failed('a', `r${i}`);
    assert.equal(limit.retryAfter('a', 'other'), 2_000);
    now = 2_000;
    assert.equal(limit.retryAfter('a', 'r'), 0);
    limit.succeeded('a', 'r');
    now = 60_000;
    assert.equal(limit.retryAfter('a', 'other'), 0);
  });
});

describe('CancelRegistry', () => {
  it('finds by process id and whole key, until revoked', () => {
    const registry = new CancelRegistry();
    const target = { route: { computeId: 'c', socketDir: '/x', port: 1 }, pid: 9, key: Buffer.alloc(4) };
    const k = registry.issue(0x30002, target);
    assert.equal(registry.find(k.pid, k.key), target);
    assert.equal(registry.find(k.pid, k.key.subarray(0, 4)), undefined);
    assert.equal(registry.find(k.pid ^ 1, k.key), undefined);
    registry.revoke(k.pid);
    assert.equal(registry.find(k.pid, k.key), undefined);
    assert.equal(registry.size, 0);
  });
});
