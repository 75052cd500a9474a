/** Safekeeper process. */
import { hardenMemory, loadConfig, readSecret, runService } from '@lakebase/service-kit';
import { safekeeperConfig } from './config.ts';
import { startSafekeeper } from './service.ts';

hardenMemory();
const config = loadConfig('lakebase-safekeeper', safekeeperConfig, process.argv.slice(2));

await runService(config.id, config.logLevel, async ({ log, teardown }) => {
  const safekeeper = await startSafekeeper(config, readSecret(config.secretFile), log);
  teardown.add('safekeeper', () => safekeeper.stop());
});
