/** Layout rules as code: imports point one way, every import is declared, files stay small, markdown has one title, nothing unwanted is
 *  committed. Each finding says what to do instead. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');

/** A package may import packages of a lower layer only. */
const LAYER: Readonly<Record<string, number>> = {
  base: 0,
  ids: 1,
  bytes: 2,
  envelope: 3,
  'pg-format': 3,
  'pg-wire': 3,
  'wal-quorum': 3,
  kms: 3,
  'object-store': 3,
  api: 3,
  'pg-redo': 4,
  'wal-store': 4,
  keys: 4,
  layers: 5,
  'service-kit': 5,
  inspect: 6,
  testkit: 6,
};
/** `inspect`: reads files of a stopped or foreign installation, where no service can be asked; its one command loads it when it runs. */
const CLI_MAY_IMPORT = new Set(['base', 'ids', 'api', 'service-kit', 'pg-wire', 'inspect']);
const FILE_LINES_MAX = 800;

const findings: string[] = [];
const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], { cwd: root, encoding: 'utf8' })
  .split('\n')
  .filter((f) => f !== '' && existsSync(join(root, f)));

for (const file of files) {
  if (/\.(png|jpg|gz|zip|so|o|a|wasm|node|tgz)$/.test(file)) findings.push(`${file}: no binary or generated files in the repository`);
  if (file.endsWith('.ts')) checkSource(file, readFileSync(join(root, file), 'utf8'));
  if (file.endsWith('.md')) checkMarkdown(file, readFileSync(join(root, file), 'utf8'));
}
for (const finding of findings) process.stdout.write(`${finding}\n`);
process.stdout.write(findings.length === 0 ? `layout: ${files.length} files are fine\n` : `layout: ${findings.length} findings\n`);
process.exit(findings.length === 0 ? 0 : 1);

function checkSource(file: string, text: string): void {
  const lines = text.split('\n').length;
  if (lines > FILE_LINES_MAX) findings.push(`${file}: ${lines} lines, at most ${FILE_LINES_MAX}; split it by noun`);
  const [kind, name] = file.split('/') as [string, string];
  const isTest = /\.test\.ts$|\.fuzz\.ts$|testing/.test(file);
  if (
    !isTest &&
    ['packages', 'services', 'apps'].includes(kind) &&
    !text.startsWith('/**') &&
    !text.startsWith('export *') &&
    !text.startsWith('#!')
  ) {
    findings.push(`${file}: open the file with a comment that says its purpose and invariants`);
  }
  for (const match of text.matchAll(/(?:from|import\()\s*'([^']+)'/g)) checkImport(file, kind, name, match[1] as string, isTest);
}

function checkImport(file: string, kind: string, name: string, target: string, isTest: boolean): void {
  if (target.startsWith('.')) {
    const resolved = join(dirname(file), target);
    const scope = kind === 'packages' || kind === 'services' || kind === 'apps' ? `${kind}/${name}/` : '';
    if (scope !== '' && !resolved.startsWith(scope))
      findings.push(`${file}: imports ${target} of another package; import it by package name`);
    if (!target.endsWith('.ts')) findings.push(`${file}: import ${target} with its .ts ending`);
    return;
  }
  const ours = /^@lakebase\/([^/]+)/.exec(target)?.[1];
  const manifestPath = kind === 'packages' || kind === 'services' || kind === 'apps' ? `${kind}/${name}` : kind;
  const manifest = join(root, manifestPath, 'package.json');
  if (existsSync(manifest) && !target.startsWith('node:')) {
    const declared = JSON.parse(readFileSync(manifest, 'utf8')) as {
      dependencies?: Record<string, string>;
      devDependencies?: Record<string, string>;
    };
    const pkg = target.startsWith('@') ? target.split('/').slice(0, 2).join('/') : (target.split('/')[0] as string);
    const rootDev = (JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { devDependencies: Record<string, string> })
      .devDependencies;
    if (
      declared.dependencies?.[pkg] === undefined &&
      !(isTest && declared.devDependencies?.[pkg] !== undefined) &&
      !((isTest || kind === 'tests' || kind === 'bench') && rootDev[pkg] !== undefined)
    )
      findings.push(`${file}: ${pkg} is not in ${manifestPath}/package.json`);
  }
  if (ours === undefined) return;
  const layer = LAYER[ours];
  if (layer === undefined) findings.push(`${file}: ${target} is not a library; services and apps are never imported`);
  else if (kind === 'packages' && !isTest && layer >= (LAYER[name] ?? 99))
    findings.push(`${file}: ${name} may not import ${ours} (layers point one way: ${Object.keys(LAYER).join(' < ')})`);
  else if (kind === 'apps' && !isTest && !CLI_MAY_IMPORT.has(ours))
    findings.push(`${file}: the CLI talks to services through api only, not ${ours}`);
  else if (target.endsWith('/testing') && !isTest && kind !== 'tests' && kind !== 'bench') findings.push(`${file}: ${target} is for tests`);
  else if (ours === 'testkit' && !isTest && kind !== 'tests' && kind !== 'bench') findings.push(`${file}: testkit is for tests`);
}

function checkMarkdown(file: string, text: string): void {
  const titles = text
    .replaceAll(/```[\s\S]*?```/g, '')
    .split('\n')
    .filter((line) => line.startsWith('# ')).length;
  if (titles !== 1) findings.push(`${file}: one title (# …) per page, found ${titles}`);
}
