// The only plain-JavaScript entry point: it must run on any Node since 20. Installs when the lock file changed, then hands over to the
// pinned Node in node_modules. Everything else is TypeScript.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const node = join(root, 'node_modules', '.bin', 'node');
const stamp = join(root, 'node_modules', '.lakebase-installed');
const lockHash = createHash('sha256')
  .update(readFileSync(join(root, 'package-lock.json')))
  .digest('hex');

function run(command, args, what) {
  const result = spawnSync(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] });
  if (result.error || result.status !== 0) {
    console.error(`lakebase: ${what} failed${result.error ? `: ${result.error.message}` : ''}`);
    process.exit(result.status || 1);
  }
}

if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== lockHash) {
  console.log('lakebase: installing packages');
  // Not `npm ci`: it refuses a lock file that lacks optional packages of other platforms, which a Linux-only mirror of the registry never had.
  run('npm', ['install', '--no-save', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'], 'npm install');
  mkdirSync(dirname(stamp), { recursive: true });
  writeFileSync(stamp, lockHash);
}
const child = spawnSync(node, [join(root, 'scripts', 'task.ts'), ...process.argv.slice(2)], { cwd: process.cwd(), stdio: 'inherit' });
process.exit(child.status ?? 1);
