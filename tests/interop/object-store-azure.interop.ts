/** The Azure store against Azurite (Microsoft's emulator, npm). */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { AzureConfig } from '@lakebase/object-store';
import { storeInterop } from './object-store-suite.ts';
import { CACHE, startServer } from './servers.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-interop-azure-'));
after(() => rmSync(dir, { recursive: true, force: true }));
// The account of every emulator, as Microsoft's documentation prints it, is not used: Azurite takes others from its environment.
const account = 'lakebase';
const accountKey = Buffer.from('a key of the interop tests').toString('base64');
const credentialsFile = join(dir, 'credentials.json');
writeFileSync(credentialsFile, JSON.stringify({ accountKey }), { mode: 0o600 });
const other = join(dir, 'other.json');
writeFileSync(other, JSON.stringify({ accountKey: Buffer.from('another key').toString('base64') }), { mode: 0o600 });

const program = join(CACHE, 'azurite/node_modules/azurite/dist/src/blob/main.js');
if (!existsSync(program))
  test('Azure Blob on Azurite', { skip: `Azurite is not here; get it with: npm install --prefix ${CACHE}/azurite azurite` });
else
  storeInterop('Azure Blob on Azurite, independent', {
    start: async () => {
      const server = await startServer(
        process.execPath,
        (port) => [
          program,
          '--silent',
          '--blobHost',
          '127.0.0.1',
          '--blobPort',
          String(port),
          '--location',
          join(dir, 'azurite'),
          '--skipApiVersionCheck',
        ],
        (url) => url,
        { AZURITE_ACCOUNTS: `${account}:${accountKey}` },
      );
      const config: AzureConfig = {
        kind: 'azure',
        account,
        container: 'lakebase-interop',
        prefix: 'a/b',
        endpoint: `${server.url}/${account}`,
        credentialsFile,
      };
      return { server, config };
    },
    wrongBucket: (c) => ({ ...c, container: 'not-there' }) as AzureConfig,
    wrongCredentials: (c) => ({ ...c, credentialsFile: other }) as AzureConfig,
  });
