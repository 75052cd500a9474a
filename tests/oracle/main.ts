/** `npm run oracle [-- --smoke] [--major 16|17|18] [--postgres PREFIX] [--wrap PG_RESETWAL] [--only PART]… [--keep]`: the long run of the redo oracle, report on stdout, exit code 1 when anything differs. */
import { parseArgs } from 'node:util';
import { failures, formatReport, runOracle } from './run.ts';

const { values } = parseArgs({
  options: {
    smoke: { type: 'boolean' },
    only: { type: 'string', multiple: true },
    postgres: { type: 'string' },
    major: { type: 'string' },
    wrap: { type: 'string' },
    keep: { type: 'boolean' },
  },
});
const report = await runOracle({
  long: values.smoke !== true,
  postgres: values.postgres ?? null,
  major: Number(values.major ?? 18),
  ...(values.only === undefined ? {} : { only: values.only }),
  ...(values.wrap === undefined ? {} : { wrapWith: values.wrap }),
  keep: values.keep === true,
  log: (line) => process.stdout.write(`${line}\n`),
});
process.stdout.write(`${formatReport(report)}\n`);
process.exitCode = failures(report) === 0 ? 0 : 1;
