/** `lakebase audit`: the audit log of keys as JSON lines, and whether its chain holds: of the server, or of a file that was exported before.
 *  Verifying needs nothing of ours but SHA-256: each line has the hash of the text of the line before. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Command } from 'commander';
import { LakebaseError } from '@lakebase/base';
import type { Context } from './context.ts';

const FIRST = '0'.repeat(64);

export function addAuditCommand(program: Command, c: Context, account: string): void {
  program
    .command('audit')
    .description('the audit log of keys, as JSON lines')
    .option('--after <n>', 'only lines after this sequence number', '0')
    .option('--verify [file]', 'no lines but whether the chain holds, of the server or of an exported file; exit code 1 when it does not')
    .action(async (o: { after: string; verify?: string | true }) => {
      const lines = (): AsyncIterable<string> => c.api().lines(`${account}/audit-log?after=${encodeURIComponent(o.after)}`);
      if (o.verify === undefined) for await (const line of lines()) c.out(line);
      else c.out(await verifyChain(o.verify === true ? lines() : createInterface({ input: createReadStream(o.verify) })));
    });
}

interface Link {
  readonly sequence: number;
  readonly previous: string;
}

/** What was verified, for people; throws CORRUPT at the first line that does not follow from the one before. */
export async function verifyChain(lines: AsyncIterable<string>): Promise<string> {
  let first: Link | undefined;
  let last: Link | undefined;
  let hash = '';
  for await (const line of lines) {
    if (line === '') continue;
    const link = readLink(line, last);
    if (last !== undefined && (link.sequence !== last.sequence + 1 || link.previous !== hash))
      throw new LakebaseError(
        'CORRUPT',
        `line ${link.sequence} does not follow from line ${last.sequence}: one of them was changed, or lines between them were taken away`,
      );
    if (last === undefined && link.sequence === 1 && link.previous !== FIRST)
      throw new LakebaseError('CORRUPT', 'line 1 is not the first of a chain');
    first ??= link;
    last = link;
    hash = createHash('sha256').update(line).digest('hex');
  }
  if (first === undefined || last === undefined) return 'no lines';
  const count = last.sequence - first.sequence + 1;
  const before = first.sequence === 1 ? '' : `; line ${first.sequence} follows a line with hash ${first.previous}`;
  return `the chain of ${count} lines holds, ${first.sequence} to ${last.sequence}${before}; hash of the last: ${hash}`;
}

function readLink(line: string, before: Link | undefined): Link {
  try {
    const { sequence, previous } = JSON.parse(line) as Partial<Link>;
    if (Number.isSafeInteger(sequence) && typeof previous === 'string') return { sequence: sequence as number, previous };
  } catch {
    // said below
  }
  throw new LakebaseError('CORRUPT', `what follows line ${before?.sequence ?? 0} is not a line of an audit log: ${line.slice(0, 100)}`);
}
