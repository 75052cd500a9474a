import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { verifyChain } from './audit.ts';

function chain(count: number, from = 1, previous = '0'.repeat(64)): string[] {
  const lines: string[] = [];
  let last = previous;
  for (let sequence = from; sequence < from + count; sequence++) {
    const line = JSON.stringify({ sequence, action: 'KMS_UNWRAP', result: 'OK', previous: last });
    lines.push(line);
    last = createHash('sha256').update(line).digest('hex');
  }
  return lines;
}
async function* feed(lines: readonly string[]): AsyncGenerator<string> {
  yield* lines;
}
const broken = (lines: readonly string[], pattern: RegExp): Promise<void> => assert.rejects(verifyChain(feed(lines)), pattern);

test('a whole chain holds, and one that begins later says what it follows', async () => {
  const lines = chain(5);
  const hash = createHash('sha256')
    .update(lines[4] as string)
    .digest('hex');
  assert.equal(await verifyChain(feed(lines)), `the chain of 5 lines holds, 1 to 5; hash of the last: ${hash}`);
  assert.match(await verifyChain(feed(lines.slice(2))), /3 lines holds, 3 to 5; line 3 follows a line with hash [0-9a-f]{64}/);
  assert.equal(await verifyChain(feed([])), 'no lines');
});

test('a changed, missing, moved or added line is found', async () => {
  const lines = chain(5);
  await broken(
    lines.map((line, i) => (i === 2 ? line.replace('"OK"', '"DENIED"') : line)),
    /line 4 does not follow from line 3/,
  );
  await broken(
    lines.filter((_, i) => i !== 2),
    /line 4 does not follow from line 2/,
  );
  await broken([...lines.slice(0, 2), lines[3] as string, lines[2] as string, lines[4] as string], /line 4 does not follow from line 2/);
  await broken([...lines, ...chain(1, 6)], /line 6 does not follow from line 5/);
  await broken(chain(2, 1, 'f'.repeat(64)), /not the first of a chain/);
  await broken([...lines, 'torn'], /what follows line 5/);
});
