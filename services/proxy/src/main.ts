/** The proxy process: Postgres clients on one port, health and metrics on another. */
import { ManagerInternalClient, internalToken } from '@lakebase/api';
import { createHttpServer, loadConfig, readSecret, runService } from '@lakebase/service-kit';
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
  await http.app.listen({ host: config.httpHost, port: config.httpPort });
  teardown.add('HTTP listener', () => http.app.close());
  log.info({ port: proxy.port, tls: config.tls === null ? 'self-signed' : config.tls.certFile }, 'proxy ready');
});
