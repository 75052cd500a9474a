#!/usr/bin/env node
// The `lakebase` command of a checkout. Plain JavaScript, because it must run on any Node since 20; hands over to the pinned one.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const node = join(root, 'node_modules', '.bin', 'node');
const cli = join(root, 'apps', 'cli', 'dist', 'main.js');
if (!existsSync(node) || !existsSync(cli)) {
  console.error('lakebase: not installed or not built yet: run npm run build');
  process.exit(2);
}
const child = spawn(node, [cli, ...process.argv.slice(2)], { stdio: 'inherit' });
// Signals of the terminal reach the child by themselves; it decides when to end.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => child.kill('SIGTERM'));
process.on('SIGHUP', () => child.kill('SIGHUP'));
child.on('exit', (code, signal) => process.exit(code ?? (signal === 'SIGINT' ? 130 : 1)));
