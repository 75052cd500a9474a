/** Operators' settings: every name that may be said is one the service knows, and what is not said nobody takes for granted. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { LakebaseError } from '@lakebase/base';
import { homeFrom } from '../home.ts';
import { INTERNAL_PORTS, type InternalPorts, serviceConfigs, settingsFromEnv } from './service-configs.ts';

const ports = Object.fromEntries(INTERNAL_PORTS.map((name, i) => [name, 10_000 + i])) as InternalPorts;

test('settings reach every service of their kind, and no other', () => {
  const dir = mkdtempSync(join(tmpdir(), 'lb-settings-'));
  try {
    const home = homeFrom({ LAKEBASE_HOME: dir }, dir);
    const configs = () => serviceConfigs(home, dir, ports, settingsFromEnv({}, 1, 2));
    assert.equal('scrubIntervalMs' in configs().pageserver, false);
    writeFileSync(home.pageserverSettingsFile, JSON.stringify({ scrubIntervalMs: 5, scrubOrphanAgeMs: 6, uploadBytes: 1 << 20 }));
    writeFileSync(home.safekeeperSettingsFile, JSON.stringify({ scrubBytesPerSecond: 7_000 }));
    const { pageserver, pageserver2, sk1, sk4, manager } = configs();
    for (const config of [pageserver, pageserver2]) {
      assert.equal(config['scrubIntervalMs'], 5);
      assert.equal(config['scrubOrphanAgeMs'], 6);
      assert.equal(config['uploadBytes'], 1 << 20);
      assert.equal(config['scrubBytesPerSecond'], undefined);
    }
    for (const config of [sk1, sk4]) assert.equal(config['scrubBytesPerSecond'], 7_000);
    assert.equal(manager['scrubIntervalMs'], undefined);
    for (const [text, message] of [
      ['{"dataDir": "/elsewhere"}', /there is no setting dataDir; there are .*scrubIntervalMs/],
      ['[1]', /must hold a JSON object with settings of the pageservers/],
      ['{', /cannot read .*pageservers\.json/],
    ] as const) {
      writeFileSync(home.pageserverSettingsFile, text);
      assert.throws(configs, (error: unknown) => error instanceof LakebaseError && error.code === 'CONFIG' && message.test(error.message));
    }
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
});
