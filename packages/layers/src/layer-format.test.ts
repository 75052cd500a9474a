import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import type { Lsn } from '@lakebase/ids';
import { decodeHeader, encodeHeader } from './layer-format.ts';

test('every flipped bit of a header is damage that names the file, also where it makes an LSN impossible', () => {
  const header = {
    kind: 'delta' as const,
    project: 'a'.repeat(32),
    timeline: 'b'.repeat(32),
    startLsn: 100 as Lsn,
    endLsn: 200 as Lsn,
    objectId: Buffer.alloc(16, 3),
    algorithm: 1,
    version: 3,
    keyReference: Buffer.alloc(20, 4),
  };
  const good = encodeHeader(header);
  assert.deepEqual(decodeHeader(good, 'f').header, header);
  for (let bit = 0; bit < good.length * 8; bit++) {
    const bad = Buffer.from(good);
    bad[bit >> 3] = (bad[bit >> 3] as number) ^ (1 << (bit & 7));
    assert.throws(
      () => decodeHeader(bad, 'the-file'),
      (e: unknown) => e instanceof LakebaseError && ['CORRUPT', 'UNSUPPORTED'].includes(e.code) && e.message.includes('the-file'),
    );
  }
});
