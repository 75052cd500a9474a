import assert from 'node:assert/strict';
import { test } from 'node:test';
import { guardMissing } from './memory.ts';

test('a guard is missing only where the supervisor meant one to be', (t) => {
  const { LAKEBASE_KEYGUARD: guard, LAKEBASE_KEYGUARD_EXPECTED: expected } = process.env;
  const set = (name: string, value: string | undefined): void => {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  };
  t.after(() => {
    set('LAKEBASE_KEYGUARD', guard);
    set('LAKEBASE_KEYGUARD_EXPECTED', expected);
  });
  for (const [have, want, missing] of [
    [undefined, undefined, false],
    [undefined, '1', true],
    ['core=no', '1', false],
  ] as const) {
    set('LAKEBASE_KEYGUARD', have);
    set('LAKEBASE_KEYGUARD_EXPECTED', want);
    assert.equal(guardMissing() !== undefined, missing);
  }
});
