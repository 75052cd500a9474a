/** Properties of names and ranges. */
import assert from 'node:assert/strict';
import { resolve } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { LakebaseError } from '@lakebase/base';
import { checkObjectKey, isObjectKey } from './keys.ts';
import type { ByteRange } from './object-store.ts';
import { absolute, checkRange, httpRange, parseContentRange } from './range.ts';
import { MemoryStore } from './testing/index.ts';

const segment = fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._-]{0,20}$/).filter((s) => !s.includes('..'));
const key = fc.array(segment, { minLength: 1, maxLength: 8 }).map((s) => s.join('/'));

test('a name that is accepted stays below its directory, and is the same as a URL', () => {
  const any = fc.oneof(
    key,
    fc.string(),
    fc.string({ unit: fc.constantFrom('a', '.', '/', '-', '\\', '%', '\0', '~', ' ', ':', '?', '#') }),
  );
  fc.assert(
    fc.property(any, (text) => {
      if (!isObjectKey(text)) return;
      assert.ok(resolve('/root/objects', text) === `/root/objects/${text}`);
      assert.equal(new URL(`http://h/bucket/${text}`).pathname, `/bucket/${text}`);
      assert.equal(encodeURI(text), text);
    }),
    { numRuns: 2_000 },
  );
  fc.assert(fc.property(key, (k) => checkObjectKey(k) === k));
});

test('a page of a list after any key goes on where the one before ended', async () => {
  await fc.assert(
    fc.asyncProperty(fc.uniqueArray(key, { maxLength: 12 }), fc.integer({ min: 1, max: 5 }), async (keys, limit) => {
      const store = new MemoryStore();
      for (const k of keys) await store.put(k, Buffer.alloc(1));
      const found: string[] = [];
      for (let after: string | undefined; ; ) {
        const page = await store.list('', { limit, ...(after === undefined ? {} : { after }) });
        found.push(...page.objects.map((o) => o.key));
        if (page.next === undefined) break;
        after = page.next;
      }
      assert.deepEqual(
        found,
        [...keys].sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))),
      );
    }),
    { numRuns: 50 },
  );
});

test('ranges: what a server is asked for is what is expected of it', () => {
  // Without -0, which is 0.
  const number = fc.oneof(fc.nat(300), fc.integer({ min: -5, max: 5 }), fc.maxSafeInteger(), fc.double()).map((n) => n + 0);
  const range: fc.Arbitrary<ByteRange> = fc.oneof(fc.record({ offset: number, length: number }), fc.record({ suffix: number }));
  fc.assert(
    fc.property(range, fc.nat(300), (r, size) => {
      let expected: { offset: number; length: number };
      try {
        checkRange(r, 'k');
        expected = absolute(r, size, 'k');
      } catch (error) {
        assert.ok(error instanceof LakebaseError && error.code === 'INVALID_ARGUMENT');
        return;
      }
      assert.ok(expected.offset >= 0 && expected.length >= 0 && expected.offset + expected.length <= size);
      const header = httpRange(r)?.header;
      const served = header === undefined ? '' : serve(header, size);
      const part = parseContentRange(served);
      if (part === undefined) assert.ok(expected.length === 0, `${header} of ${size}`);
      else assert.deepEqual(part, { ...expected, size });
    }),
    { numRuns: 3_000 },
  );
});

test('a Content-Range that is none is none', () => {
  for (const text of [
    null,
    undefined,
    '',
    'bytes */5',
    'bytes 5-4/10',
    'bytes 0-10/10',
    'bytes 0-9/*',
    'bytes 0-9/1e3',
    'bytes -1-3/5',
    `bytes 0-9/${'9'.repeat(30)}`,
    'items 0-9/10',
  ])
    assert.equal(parseContentRange(text), undefined, String(text));
});

/** RFC 9110, for one range: the Content-Range of the answer, or nothing for 416. */
function serve(header: string, size: number): string {
  const [, first = '', last = ''] = /^bytes=(\d*)-(\d*)$/.exec(header) ?? assert.fail(header);
  const from = first === '' ? Math.max(0, size - Number(last)) : Number(first);
  const to = first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1);
  return from >= size || from > to ? '' : `bytes ${from}-${to}/${size}`;
}
