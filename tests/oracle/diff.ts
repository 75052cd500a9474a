/** Says where two pages differ. */
import { BLCKSZ } from '@lakebase/ids';

/** First differing ranges of two pages, ours first. */
export function firstDifferences(ours: Buffer, theirs: Buffer, limit = 4): string {
  const parts: string[] = [];
  for (let at = 0; at < BLCKSZ && parts.length < limit; at++) {
    if (ours[at] === theirs[at]) continue;
    const end = Math.min(at + 16, BLCKSZ);
    parts.push(`@${at}: ours ${ours.toString('hex', at, end)} theirs ${theirs.toString('hex', at, end)}`);
    at = end;
  }
  return parts.join('; ');
}
