/** Entry of the key manager process: `keymanager --config FILE`. */
import { LakebaseError } from '@lakebase/base';
import { hardenMemory, loadConfig, readSecret, runService } from '@lakebase/service-kit';
import { keyManagerConfig } from './config.ts';
import { startKeyManager } from './server.ts';

hardenMemory();
const config = loadConfig('keymanager', keyManagerConfig, process.argv.slice(2));
await runService(config.id, config.logLevel, async ({ log, teardown }) => {
  // What native/keyguard could do for this process: core dumps, ptrace, swap, freed memory.
  log.info({ guard: process.env['LAKEBASE_KEYGUARD'] ?? 'not preloaded' }, 'memory of this process');
  if (config.requireKeyguard && process.env['LAKEBASE_KEYGUARD'] === undefined)
    throw new LakebaseError(
      'CONFIG',
      'requireKeyguard is set, and native/keyguard is not preloaded: run npm run build, and start through npm start',
    );
  const server = await startKeyManager(config, readSecret(config.secretFile), log);
  teardown.add('key manager', () => server.close());
});
