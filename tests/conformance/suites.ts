/** Postgres's suites as data: which tests, in which groups, run by which driver from which directory. Read from the tree itself (schedules and
 *  Makefiles), so that each major brings its own list. */
import { execFileSync } from 'node:child_process';
import { existsSync, globSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { SourceTree } from './source-tree.ts';

export interface Suite {
  readonly name: string;
  readonly kind: 'regress' | 'isolation';
  /** Working directory and --inputdir. */
  readonly inputDir: string;
  readonly dbname: string;
  /** Tests of one group run side by side. */
  readonly groups: readonly (readonly string[])[];
  readonly arguments: readonly string[];
}

export interface SkippedSuite {
  readonly name: string;
  readonly reason: string;
}

const ISOLATION_TESTS_PER_GROUP = 20;

function schedule(path: string): string[][] {
  return readFileSync(path, 'utf8')
    .split('\n')
    .map((line) => /^test:\s*(.+)$/.exec(line.trim())?.[1])
    .filter((tests) => tests !== undefined)
    .map((tests) => tests.split(/\s+/));
}

const chunks = <T>(items: readonly T[], size: number): T[][] =>
  Array.from({ length: Math.ceil(items.length / size) }, (_, i) => items.slice(i * size, (i + 1) * size));

export function regressSuite(tree: SourceTree): Suite {
  const inputDir = join(tree.source, 'src/test/regress');
  return {
    name: 'regress',
    kind: 'regress',
    inputDir,
    dbname: 'regression',
    groups: schedule(join(inputDir, 'parallel_schedule')),
    arguments: [`--dlpath=${inputDir}`, '--max-concurrent-tests=20'],
  };
}

/** One test at a time, as the driver does anyway; groups only say after how many tests the pages are compared. */
export function isolationSuite(tree: SourceTree): Suite {
  const inputDir = join(tree.source, 'src/test/isolation');
  return {
    name: 'isolation',
    kind: 'isolation',
    inputDir,
    dbname: 'isolation_regression',
    groups: chunks(schedule(join(inputDir, 'isolation_schedule')).flat(), ISOLATION_TESTS_PER_GROUP),
    arguments: [],
  };
}

/** What `make installcheck` would run in contrib and src/pl; the rest with the reason the Makefiles give. */
export function moduleSuites(tree: SourceTree): { suites: Suite[]; skipped: SkippedSuite[] } {
  const suites: Suite[] = [];
  const skipped: SkippedSuite[] = [];
  const makefiles = [
    ...globSync(join(tree.source, 'contrib/*/Makefile')),
    ...globSync(join(tree.source, 'src/pl/*/Makefile')),
    join(tree.source, 'src/pl/plpgsql/src/Makefile'),
  ].sort();
  for (const makefile of makefiles) {
    const dir = dirname(makefile);
    const name = dir.includes('/src/pl/') ? `pl/${dir.slice(dir.indexOf('/src/pl/') + 8).replace(/\/src$/, '')}` : basename(dir);
    const v = variables(dir);
    if (v.regress.length === 0 && v.isolation.length === 0) continue;
    const missing = notBuilt(tree, dir, name, [...v.regressOptions, ...v.isolationOptions]);
    if (missing !== undefined || v.noInstallCheck) {
      skipped.push({
        name,
        reason: missing ?? 'NO_INSTALLCHECK: the suite needs a server configured for it alone, and make installcheck leaves it out too',
      });
      continue;
    }
    if (v.regress.length > 0)
      suites.push({
        name,
        kind: 'regress',
        inputDir: dir,
        dbname: option(v.regressOptions, 'dbname') ?? 'contrib_regression',
        groups: [v.regress],
        arguments: [
          ...v.regressOptions
            .filter((o) => !o.startsWith('--dbname'))
            .map((o) => (o.startsWith('--dlpath') ? `--dlpath=${join(tree.source, 'src/test/regress')}` : o)),
        ],
      });
    if (v.isolation.length > 0)
      suites.push({
        name: `${name} (isolation)`,
        kind: 'isolation',
        inputDir: dir,
        dbname: option(v.isolationOptions, 'dbname') ?? 'isolation_regression',
        groups: [v.isolation],
        arguments: v.isolationOptions.filter((o) => !o.startsWith('--dbname')),
      });
  }
  return { suites, skipped };
}

const option = (options: readonly string[], name: string): string | undefined =>
  options.find((o) => o.startsWith(`--${name}=`))?.slice(name.length + 3);

interface MakeVariables {
  readonly regress: string[];
  readonly isolation: string[];
  readonly regressOptions: string[];
  readonly isolationOptions: string[];
  readonly noInstallCheck: boolean;
}

/** Asks make for the variables: they depend on configure's answers. */
function variables(dir: string): MakeVariables {
  const names = ['REGRESS', 'ISOLATION', 'REGRESS_OPTS', 'ISOLATION_OPTS', 'NO_INSTALLCHECK'];
  const rule = `lakebase-show:;@echo "@@${names.map((name) => `$(${name})`).join('|')}"`;
  const output = execFileSync('make', ['-s', '-C', dir, `--eval=${rule}`, 'lakebase-show'], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const [regress = '', isolation = '', regressOptions = '', isolationOptions = '', no = ''] = (
    output.split('\n').find((line) => line.startsWith('@@')) ?? '@@'
  )
    .slice(2)
    .split('|');
  const words = (text: string): string[] => text.split(/\s+/).filter((word) => word !== '');
  return {
    regress: words(regress),
    isolation: words(isolation),
    regressOptions: words(regressOptions),
    isolationOptions: words(isolationOptions),
    noInstallCheck: no.trim() !== '',
  };
}

/** A suite whose extension is not installed in this build (perl, python, tcl, xml, ssl… were not configured). */
function notBuilt(tree: SourceTree, dir: string, name: string, options: readonly string[]): string | undefined {
  const extensions = join(tree.prefix, 'share');
  const has = (extension: string): boolean =>
    [`${extensions}/extension/${extension}.control`, `${extensions}/postgresql/extension/${extension}.control`].some((p) => existsSync(p));
  const language = /(plperl|plpython|pltcl|tcl$)/.exec(name)?.[1];
  if (language !== undefined && !has(language === 'plpython' ? 'plpython3u' : language === 'tcl' ? 'pltcl' : language))
    return `this build has no ${language}`;
  for (const o of options) if (o.startsWith('--load-extension=') && !has(o.slice(17))) return `this build has no extension ${o.slice(17)}`;
  const own = globSync(join(dir, '*.control')).map((p) => basename(p, '.control'));
  const absent = own.find((extension) => !has(extension));
  return absent === undefined ? undefined : `this build has no extension ${absent}`;
}
