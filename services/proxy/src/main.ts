/** The proxy process: Postgres clients on one port, health and metrics on another. */
import { KeyManagerClient, ManagerInternalClient, internalToken } from '@lakebase/api';
import { KeyWatch, lockReason } from '@lakebase/keys';
import { createHttpServer, forgetGarbage, loadConfig, readSecret, runService } from '@lakebase/service-kit';
import { proxyConfigSchema } from './config.ts';
import { ProxyServer } from './proxy-server.ts';

const config = loadConfig('lakebase-proxy', proxyConfigSchema, process.argv.slice(2));

await runService(config.id, config.logLevel, async ({ log, teardown }) => {
  const secret = readSecret(config.secretFile);
  const manager = new ManagerInternalClient({ baseUrl: config.managerUrl, token: internalToken(secret, 'service') });
  const started: { proxy?: ProxyServer } = {};
  const http = createHttpServer({
    log,
    secret,
    health: () => ({ service: 'proxy', id: config.id, port: started.proxy?.port, sessions: started.proxy?.sessions }),
  });
  const proxy = await ProxyServer.start({ config, log, manager, secret, registry: http.metrics });
  started.proxy = proxy;
  teardown.add('client listener', () => proxy.stop());
  if (config.keyManagerUrl !== null) {
    // Statements and rows of ended sessions are garbage, but still there: when a key goes they must not be.
    const watch = new KeyWatch({
      client: new KeyManagerClient({ baseUrl: config.keyManagerUrl, token: internalToken(secret, 'service') }),
      log,
      listener: (project, state) => {
        if (lockReason(project, state)?.code === 'KEY_REVOKED') void forgetGarbage();
      },
    });
    watch.start().catch(() => {});
    teardown.add('watch of keys', () => watch.stop());
  }
  await http.app.listen({ host: config.httpHost, port: config.httpPort });
  teardown.add('HTTP listener', () => http.app.close());
  log.info({ port: proxy.port, tls: config.tls === null ? 'self-signed' : config.tls.certFile }, 'proxy ready');
});
