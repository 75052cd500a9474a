import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { silentLogger } from '@lakebase/base';
import type { AgentSetup } from '../agent/protocol.ts';
import { Computes } from './computes.ts';

test('a compute that has ended says nothing about roles: a client whose compute just died must not be told that its password is wrong', async () => {
  const dataDir = mkdtempSync(join(tmpdir(), 'lb-computes-'));
  try {
    const computes = new Computes({
      setup: { account: null, warmUp: { directory: join(dataDir, 'warm-up') } } as unknown as AgentSetup,
      postgres: () => ({ binDir: '', libDir: '' }),
      secret: 'secret',
      dataDir,
      runtimeDir: join(dataDir, 'run'),
      spareAgents: 0,
      log: silentLogger,
    });
    await assert.rejects(computes.role('c1', 'owner'), { code: 'CONFLICT' });
    await computes.close();
  } finally {
    rmSync(dataDir, { recursive: true, force: true });
  }
});
