/** Finding an installation: every supported major from npm, a configured one, and what is said when it is not there or another major. */
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test from 'node:test';
import { POSTGRES_MAJORS, findPostgres } from './postgres-installation.ts';

test('every supported major is found in the npm packages, and is that major', () => {
  for (const major of POSTGRES_MAJORS) assert.equal(findPostgres(major).major, major);
  assert.throws(() => findPostgres(15), { code: 'UNSUPPORTED', message: /use one of 18, 17, 16/ });
});

test('a configured installation is taken for its major only, and its binary is asked', () => {
  const home = mkdtempSync(join(tmpdir(), 'lb-majors-'));
  chmodSync(home, 0o755);
  try {
    mkdirSync(join(home, 'bin'));
    writeFileSync(join(home, 'bin', 'postgres'), '#!/bin/sh\necho "postgres (PostgreSQL) 17.3 (Some Distribution 17.3-1)"\n', {
      mode: 0o755,
    });
    assert.equal(findPostgres(17, { '17': home }).binDir, join(home, 'bin'));
    assert.equal(findPostgres(17, home).major, 17);
    assert.notEqual(findPostgres(18, { '17': home }).binDir, join(home, 'bin'), 'npm for the others');
    assert.throws(() => findPostgres(16, { '16': home }), {
      code: 'CONFIG',
      message: /is Postgres 17, and Postgres 16 is wanted.*postgresInstallations/,
    });
    assert.throws(() => findPostgres(16, { '16': dirname(home) }), { code: 'CONFIG', message: /no Postgres 16 at/ });
  } finally {
    rmSync(home, { recursive: true, force: true });
  }
});
