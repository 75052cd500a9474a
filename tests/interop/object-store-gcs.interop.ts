/** The Google Cloud Storage store against fake-gcs-server (Go). */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { GcsConfig } from '@lakebase/object-store';
import { storeInterop } from './object-store-suite.ts';
import { CACHE, findProgram, startServer } from './servers.ts';

const dir = mkdtempSync(join(tmpdir(), 'lb-interop-gcs-'));
after(() => rmSync(dir, { recursive: true, force: true }));

const program = findProgram('fake-gcs-server', 'bin');
if (program === null)
  test('Google Cloud Storage on fake-gcs-server', {
    skip: `fake-gcs-server is not here; get it with: GOBIN=${CACHE}/bin go install github.com/fsouza/fake-gcs-server@latest`,
  });
else
  storeInterop('Google Cloud Storage on fake-gcs-server, independent', {
    start: async () => {
      const server = await startServer(
        program,
        (port) => [
          '-scheme',
          'http',
          '-host',
          '127.0.0.1',
          '-port',
          String(port),
          '-public-host',
          `127.0.0.1:${port}`,
          '-backend',
          'memory',
          '-log-level',
          'error',
        ],
        (url) => `${url}/storage/v1/b?project=test`,
      );
      const config: GcsConfig = { kind: 'gcs', bucket: 'lakebase-interop', prefix: 'a/b', endpoint: server.url };
      return { server, config };
    },
    wrongBucket: (c) => ({ ...c, bucket: 'not-there' }) as GcsConfig,
    // It asks for none.
    wrongCredentials: 'the server takes everybody',
  });
