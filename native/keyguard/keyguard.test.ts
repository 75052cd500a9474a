/** The guard in a real process: what it reports, what the kernel says about it, and that freed memory is overwritten. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { release, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const compiler = ['cc', 'gcc', 'clang'].find((name) => spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0);
const skip = compiler === undefined ? 'no C compiler' : false;
const dir = mkdtempSync(join(tmpdir(), 'lb-keyguard-'));
after(() => rmSync(dir, { recursive: true }));
const library = join(dir, 'keyguard.so');

function guarded(command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): string {
  const result = spawnSync(command, args, { env: { ...process.env, LD_PRELOAD: library, ...env }, encoding: 'utf8' });
  assert.equal(result.status, 0, result.stderr);
  return result.stdout;
}

/** CAP_IPC_LOCK, of the first user namespace, on a kernel that gives locked pages back. */
function mayLock(): boolean {
  const capabilities = BigInt(`0x${/CapEff:\s+(\S+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`);
  const [major = 0, minor = 0] = release().split('.').map(Number);
  const everyUser = /^\s*0\s+0\s+4294967295\s*$/.test(readFileSync('/proc/self/uid_map', 'utf8'));
  return ((capabilities >> 14n) & 1n) === 1n && everyUser && (major > 5 || (major === 5 && minor >= 18));
}

test('builds', { skip }, () => {
  const result = spawnSync(
    compiler as string,
    ['-std=c11', '-O2', '-fPIC', '-fvisibility=hidden', '-shared', '-Wl,-z,defs', '-o', library, join(here, 'src/keyguard.c')],
    { encoding: 'utf8' },
  );
  assert.equal(result.status, 0, result.stderr);
});

test('Node runs under it: not dumpable, no core, says what it did, and does not pass itself on', { skip }, () => {
  const script = `
    const status = require('fs').readFileSync('/proc/self/status', 'utf8');
    const limits = require('fs').readFileSync('/proc/self/limits', 'utf8');
    const keep = []; for (let i = 0; i < 200; i++) { keep.push(Buffer.alloc(1 << 20, 1)); if (keep.length > 20) keep.splice(0, 15); }
    globalThis.gc(); globalThis.gc();
    console.log(JSON.stringify({ guard: process.env.LAKEBASE_KEYGUARD, preload: process.env.LD_PRELOAD ?? null,
      core: /Max core file size +(\\S+) +(\\S+)/.exec(limits).slice(1), locked: Number(/VmLck:\\s+(\\d+)/.exec(status)[1]) }));`;
  const seen = JSON.parse(guarded(process.execPath, ['--expose-gc', '-e', script])) as {
    guard: string;
    preload: string | null;
    core: string[];
    locked: number;
  };
  assert.match(seen.guard, /^dumpable=no core=no mlock=(yes|no:\S+) perturb=\S+$/);
  assert.equal(seen.preload, null);
  assert.deepEqual(seen.core, ['0', '0']);
  if (/mlock=yes/.test(seen.guard)) assert.ok(seen.locked > 0);
  if (mayLock()) assert.match(seen.guard, /mlock=yes/);
  assert.match(
    guarded(process.execPath, ['-p', 'process.env.LAKEBASE_KEYGUARD'], { LAKEBASE_KEYGUARD_MLOCK: '0' }),
    /mlock=no:switched-off/,
  );
});

test('freed memory is overwritten, and locked pages can be given back', { skip }, () => {
  const source = join(dir, 'probe.c');
  writeFileSync(
    source,
    `#define _GNU_SOURCE
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    int main(void) {
      char *volatile secret = malloc(4000);
      memset(secret, 'S', 4000);
      free(secret);
      int left = 0;
      for (int i = 64; i < 4000; i++) left += secret[i] == 'S';
      char *page = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      page[0] = 1;
      int could = mlock(page, 65536) == 0;
      int back = could ? madvise(page, 65536, MADV_DONTNEED) : 0;
      printf("%d %d %d %d\\n", left, back, could ? page[0] : 0, prctl(PR_GET_DUMPABLE));
      return 0;
    }`,
  );
  const probe = join(dir, 'probe');
  assert.equal(spawnSync(compiler as string, ['-O0', '-w', '-o', probe, source]).status, 0);
  assert.equal(guarded(probe, []).trim(), '0 0 0 0');
});
