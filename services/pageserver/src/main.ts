/** Entry of the pageserver process: `pageserver --config FILE`. */
import { hardenMemory, loadConfig, readSecret, runService } from '@lakebase/service-kit';
import { configSchema } from './config.ts';
import { collectWhenIdle } from './idle-memory.ts';
import { startPageserver } from './server.ts';
import { demoteHelpers } from './slice.ts';

hardenMemory();
collectWhenIdle();
demoteHelpers();
const config = loadConfig('pageserver', configSchema, process.argv.slice(2));
await runService(config.id, config.logLevel, async ({ log, teardown }) => {
  const server = await startPageserver(config, readSecret(config.secretFile), log);
  teardown.add('pageserver', () => server.close());
});
