/** `lakebase scrub`: has every stored object and file read whole and compared, says what is wrong, and repairs it when asked to. Progress goes to stderr,
 *  the result to stdout. Exit code 1 when something is left wrong, or could not be looked at. */
import type { ScrubFinding, ScrubStatus, ScrubSummary } from '@lakebase/api';
import { LakebaseError, sleep } from '@lakebase/base';
import type { Command } from 'commander';
import type { Json } from '../api-client.ts';
import { mebibytes, printTable } from '../output.ts';
import type { Context } from './context.ts';

const LOOK_MS = 500;
const MIB = 1 << 20;

interface Options {
  readonly project?: string;
  readonly repair?: boolean;
  readonly output: string;
  readonly rate?: string;
}

export function addScrubCommand(program: Command, c: Context): void {
  program
    .command('scrub')
    .description('read every stored object and file whole, compare it with what names it, and report what is wrong')
    .option('-p, --project <id>', 'only this project')
    .option('--repair', 'replace what is damaged or missing by a good copy, and delete orphans that are old enough')
    .option('--rate <MiB/s>', 'read at most so much in a second, in each service (default: as configured)')
    .option('--output <form>', 'text or json', 'text')
    .action(async (o: Options) => {
      if (o.output !== 'text' && o.output !== 'json') throw new LakebaseError('INVALID_ARGUMENT', '--output is text or json');
      const summary = await scrub(c, o);
      if (o.output === 'json') c.out(JSON.stringify(summary, null, 2));
      else print(c, summary);
      if (!isClean(summary)) process.exitCode = 1;
    });
}

async function scrub(c: Context, o: Options): Promise<ScrubSummary> {
  const api = c.api();
  const rate = o.rate === undefined ? undefined : Math.round(Number(o.rate) * MIB);
  if (rate !== undefined && !(rate >= 1_024)) throw new LakebaseError('INVALID_ARGUMENT', '--rate is a number of MiB in a second');
  let summary = await api.call<ScrubSummary & Json>('POST', 'lakebase/scrubs', {
    ...(o.project === undefined ? {} : { project: o.project }),
    repair: o.repair === true,
    ...(rate === undefined ? {} : { bytes_per_second: rate }),
  });
  let said = '';
  const interrupted = new AbortController();
  const onInterrupt = (): void => interrupted.abort();
  process.once('SIGINT', onInterrupt);
  try {
    while (summary.state === 'RUNNING') {
      const now = summary.services.map(progress).join('; ');
      if (now !== said) c.err(now);
      said = now;
      await sleep(LOOK_MS, interrupted.signal);
      summary = await api.call<ScrubSummary & Json>('GET', `lakebase/scrubs/${summary.id}`);
    }
    return summary;
  } catch (error) {
    if (!interrupted.signal.aborted) throw error;
    await api.call('DELETE', `lakebase/scrubs/${summary.id}`);
    throw new LakebaseError('CLOSED', 'ended; what was repaired until now stays repaired');
  } finally {
    process.removeListener('SIGINT', onInterrupt);
  }
}

const progress = (s: ScrubStatus): string =>
  `${s.service} ${s.timelines.done}/${s.timelines.total} timelines, ${s.objects} objects, ${mebibytes(s.bytes)}`;

const isClean = (s: ScrubSummary): boolean => s.state === 'DONE' && s.services.every((x) => x.left === 0 && x.skipped.length === 0);

function print(c: Context, { services }: ScrubSummary): void {
  const findings = services.flatMap((s) => s.findings.map((f: ScrubFinding) => ({ service: s.service, ...f })));
  if (findings.length > 0)
    printTable(
      findings as unknown as Json[],
      [
        ['SERVICE', (f) => f.service],
        ['FOUND', (f) => f.kind],
        ['OUTCOME', (f) => f.outcome],
        ['NAME', (f) => f.name],
        ['DETAIL', (f) => f.detail],
      ],
      c.out,
    );
  for (const s of services) {
    if (s.findingsOmitted > 0) c.out(`${s.service}: ${s.findingsOmitted} more findings`);
    for (const name of s.skipped) c.out(`${s.service}: not looked at: ${name}`);
    if (s.error !== null) c.out(`${s.service}: ${s.error}`);
  }
  const sum = (of: (s: ScrubStatus) => number): number => services.reduce((n, s) => n + of(s), 0);
  const left = sum((s) => s.left);
  const total = findings.length + sum((s) => s.findingsOmitted);
  c.out(
    `${sum((s) => s.objects)} objects and files, ${mebibytes(sum((s) => s.bytes))} read; ${total} findings, ${total - left} put right, ${left} left`,
  );
}
