import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { checkPreloadLibraries } from './preload-libraries.ts';
import { userSettings } from './settings.ts';

describe('shared_preload_libraries', () => {
  it('libraries that are there pass; one that is not, or that registers a resource manager, is named', () => {
    const libDir = mkdtempSync(join(tmpdir(), 'lb-majors-'));
    try {
      mkdirSync(join(libDir, 'postgresql'));
      writeFileSync(join(libDir, 'postgresql', 'plain.so'), '\u007fELF …');
      writeFileSync(join(libDir, 'postgresql', 'columns.so'), '\u007fELF … \0RegisterCustomRmgr\0 …');
      const check = (value: string): void => checkPreloadLibraries({ shared_preload_libraries: value }, libDir);
      check('');
      check('plain, "plain"');
      assert.throws(() => check('plain,absent'), { code: 'CONFIG', message: /names absent/ });
      assert.throws(() => check('columns'), { code: 'UNSUPPORTED', message: /names columns, which writes WAL records of its own/ });
    } finally {
      rmSync(libDir, { recursive: true, force: true });
    }
  });

  it('values the Manager would refuse do not get into postgresql.conf either', () =>
    assert.deepEqual(userSettings({ shared_preload_libraries: '../x', wal_level: 'minimal', work_mem: '1MB' }), [['work_mem', '1MB']]));
});
