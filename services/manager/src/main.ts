/** Process entry of the Manager. */
import { loadConfig, runService } from '@lakebase/service-kit';
import { managerConfig } from './config.ts';
import { startManager } from './manager.ts';

const config = loadConfig('lakebase-manager', managerConfig, process.argv.slice(2));
await runService(config.id, config.logLevel, async ({ log, teardown, fail }) => {
  await startManager({ config, log, teardown, fail });
});
