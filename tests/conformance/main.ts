/** `npm run conformance [-- --major 18 --source DIR --install PREFIX --fetch --suites regress,isolation,contrib,pl,NAME --tiny --kill --redo --pages-at-end --output DIR]`:
 *  Postgres's own suites through the whole system. Without --major: every supported major whose source tree is on the machine.
 *  Exit code 1 when anything differs, 2 when nothing could be run. */
import { homedir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { failuresOf, formatCampaign, runCampaign } from './campaign.ts';
import { fetchSource } from './fetch-source.ts';
import { failures, formatReport } from '../oracle/run.ts';
import { regressThroughOracle } from './redo-check.ts';
import { findSourceTree, type SourceTree } from './source-tree.ts';
import { disposeRunning } from './targets.ts';
import { isolationSuite, moduleSuites, regressSuite, type Suite } from './suites.ts';

const MAJORS = [18, 17, 16] as const;
/** Root's home is closed to the account that Postgres runs under. */
const FETCH_DIRECTORY = process.getuid?.() === 0 ? '/var/tmp/lakebase-conformance' : join(homedir(), '.cache', 'lakebase-conformance');

const { values } = parseArgs({
  options: {
    major: { type: 'string' },
    source: { type: 'string' },
    install: { type: 'string' },
    fetch: { type: 'boolean' },
    'fetch-dir': { type: 'string', default: FETCH_DIRECTORY },
    suites: { type: 'string', default: 'regress,isolation,contrib,pl' },
    tiny: { type: 'boolean' },
    kill: { type: 'boolean' },
    redo: { type: 'boolean' },
    'pages-at-end': { type: 'boolean' },
    'no-restart': { type: 'boolean' },
    groups: { type: 'string' },
    output: { type: 'string' },
  },
});

const say = (line: string): void => {
  process.stdout.write(`${new Date().toISOString().slice(11, 19)} ${line}\n`);
};

function chosen(tree: SourceTree): { suites: Suite[]; skipped: { name: string; reason: string }[] } {
  const wanted = new Set(values.suites.split(','));
  const modules = moduleSuites(tree);
  const isPl = (name: string): boolean => name.startsWith('pl/');
  const suites = [
    ...(wanted.has('regress') ? [regressSuite(tree)] : []),
    ...(wanted.has('isolation') ? [isolationSuite(tree)] : []),
    ...modules.suites.filter((s) => wanted.has(s.name) || wanted.has(isPl(s.name) ? 'pl' : 'contrib')),
  ];
  const limit = values.groups === undefined ? undefined : Number(values.groups);
  return {
    suites: limit === undefined ? suites : suites.map((s) => ({ ...s, groups: s.groups.slice(0, limit) })),
    skipped: modules.skipped.filter((s) => wanted.has(isPl(s.name) ? 'pl' : 'contrib')),
  };
}

// Broken off: what runs under our name must not stay behind.
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.once(signal, () => {
    void disposeRunning().finally(() => process.exit(130));
  });

let [ran, failed] = [0, 0];
for (const major of values.major === undefined ? MAJORS : [Number(values.major)]) {
  let tree = findSourceTree(major, { source: values.source, install: values.install });
  if (typeof tree === 'string' && values.fetch === true) {
    const fetched = fetchSource(major, values['fetch-dir'], say);
    tree = 'reason' in fetched ? fetched.reason : findSourceTree(major, fetched);
  }
  if (typeof tree === 'string') {
    say(`Postgres ${major}: not run: ${tree}`);
    continue;
  }
  ran++;
  say(`Postgres ${tree.version}: ${tree.source}, installed at ${tree.prefix}`);
  if (values.redo === true) {
    const report = await regressThroughOracle(tree, say);
    process.stdout.write(`${formatReport(report)}\n`);
    failed += failures(report);
    continue;
  }
  const report = await runCampaign({
    tree,
    ...chosen(tree),
    tiny: values.tiny === true,
    kill: values.kill === true,
    pagesAtEnd: values['pages-at-end'] === true,
    restart: values['no-restart'] !== true,
    log: say,
    ...(values.output === undefined ? {} : { outputDir: values.output }),
  });
  process.stdout.write(`${formatCampaign(report)}\n`);
  failed += failuresOf(report);
}
process.exitCode = ran === 0 ? 2 : failed === 0 ? 0 : 1;
