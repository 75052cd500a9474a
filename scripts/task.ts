/** Runs the project's tasks on the pinned Node: build, start, test, check, bench, sim, chaos, oracle.
 *  `npm run <task>` comes here through bootstrap.mjs, which has installed the packages. */
import { spawn, spawnSync } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runTests } from './run-tests.ts';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const bin = (name: string): string => join(root, 'node_modules', '.bin', name);

function run(command: string, args: readonly string[]): void {
  const result = spawnSync(command, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] });
  if (result.error !== undefined) fail(`cannot run ${command}: ${result.error.message}`);
  if (result.status !== 0) process.exit(result.status ?? 1);
}

function fail(message: string): never {
  process.stderr.write(`lakebase: ${message}\n`);
  process.exit(1);
}

function compiler(): string {
  for (const name of [process.env['CC'], 'cc', 'gcc', 'clang']) {
    if (name !== undefined && spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0) return name;
  }
  return fail('no C compiler found; install one (Debian: apt install gcc libc6-dev) or name it in CC');
}

function build(): void {
  run(bin('tsc'), ['-b']);
  const make = spawnSync('make', ['--version'], { stdio: 'ignore' }).status === 0;
  for (const name of ['pgshim', 'keyguard']) {
    const library = join(root, 'native', name);
    if (make) run('make', ['-s', '-C', library, `CC=${compiler()}`]);
    else run('sh', [join(library, 'build.sh'), compiler()]);
  }
}

/** Stays the parent so that Ctrl-C reaches the child once, by the terminal, and we wait for its ordered stop. */
function handOver(script: string, args: readonly string[], conditions: readonly string[] = []): void {
  const child = spawn(process.execPath, [...conditions, join(root, script), ...args], { stdio: 'inherit' });
  for (const signal of ['SIGINT', 'SIGTERM'] as const)
    process.on(signal, () => {
      if (signal === 'SIGTERM') child.kill(signal);
    });
  child.on('exit', (code, signal) => process.exit(code ?? (signal === 'SIGINT' ? 130 : 1)));
}

const fromSource = ['--conditions=lakebase-source', '--disable-warning=ExperimentalWarning'];
const [task = 'help', ...args] = process.argv.slice(2);
switch (task) {
  case 'build':
    build();
    break;
  case 'start':
    build();
    handOver('apps/cli/dist/main.js', ['up', ...args]);
    break;
  case 'test':
    build();
    process.exit(await runTests(root, args));
    break;
  case 'check':
    run(bin('tsc'), ['-b']);
    run(bin('oxlint'), ['--type-aware', '-c', join(root, '.oxlintrc.json'), '.']);
    run(bin('biome'), ['format', '.']);
    run(process.execPath, [join(root, 'scripts', 'layout-check.ts')]);
    break;
  case 'bench':
    build();
    handOver('bench/main.ts', args, fromSource);
    break;
  case 'sim':
    handOver('tests/sim/main.ts', args, fromSource);
    break;
  case 'interop':
    handOver('tests/interop/main.ts', args, fromSource);
    break;
  case 'oracle':
    handOver('tests/oracle/main.ts', args, fromSource);
    break;
  case 'conformance':
    build();
    handOver('tests/conformance/main.ts', args, fromSource);
    break;
  case 'fuzz':
    handOver('tests/fuzz/main.ts', args, fromSource);
    break;
  case 'chaos':
    build();
    handOver('tests/system/chaos.ts', args, fromSource);
    break;
  case 'drill':
    build();
    handOver('tests/system/revoke-campaign.ts', args, fromSource);
    break;
  default:
    fail(`unknown task ${task}; there are build, start, test, check, bench, sim, interop, oracle, fuzz, conformance, chaos, drill`);
}
