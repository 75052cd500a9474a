/** The listener for Postgres clients. Owns every client socket; `stop` tells the idle ones and closes all. */
import { createHmac } from 'node:crypto';
import { type AddressInfo, type Server, type Socket, createServer } from 'node:net';
import { LakebaseError, type Logger } from '@lakebase/base';
import type { Registry } from 'prom-client';
import { CancelRegistry } from './cancel-registry.ts';
import type { ProxyConfig } from './config.ts';
import { Directory, type ManagerCalls } from './directory.ts';
import { FailureLimit } from './failure-limit.ts';
import { createMetrics } from './metrics.ts';
import { type ProxyContext, serveClient } from './session.ts';
import { type TlsIdentity, loadTlsIdentity } from './tls.ts';

export interface ProxyServerOptions {
  readonly config: ProxyConfig;
  readonly log: Logger;
  readonly manager: ManagerCalls;
  /** Installation secret, hexadecimal. */
  readonly secret: string;
  readonly registry: Registry;
}

/** Sockets beyond maxConnections that may come far enough to be told so, or to cancel a query. */
const SPARE_SOCKETS = 256;
const BACKLOG = 4_096;
const KEEPALIVE_MS = 60_000;

export class ProxyServer {
  readonly #context: ProxyContext;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  static async start(options: ProxyServerOptions): Promise<ProxyServer> {
    const tls = await loadTlsIdentity(options.config.tls, options.config.dataDir);
    const proxy = new ProxyServer(options, tls);
    await proxy.#listen();
    return proxy;
  }

  private constructor({ config, log, manager, secret, registry }: ProxyServerOptions, tls: TlsIdentity) {
    this.#context = {
      config,
      log,
      tls,
      directory: new Directory(manager, config.staleAfterMs),
      failures: new FailureLimit(),
      cancels: new CancelRegistry(),
      metrics: createMetrics(registry, { sessions: () => this.#context.sessions, sockets: () => this.#sockets.size }),
      // The same after a restart: a mock salt that changed would give the unknown role away.
      mockSecret: createHmac('sha256', Buffer.from(secret, 'hex')).update('lakebase-proxy-scram-mock-v1').digest(),
      relays: new Set(),
      sessions: 0,
    };
    this.#server = createServer({ noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEPALIVE_MS }, (socket) => this.#accept(socket));
    this.#server.maxConnections = config.maxConnections + SPARE_SOCKETS;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }
  get sessions(): number {
    return this.#context.sessions;
  }
  get sockets(): number {
    return this.#sockets.size;
  }

  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const relay of this.#context.relays) relay.stop();
    // Everybody has been told; those that do not read it are not waited for.
    const hurry = setTimeout(() => {
      for (const socket of this.#sockets) socket.destroy();
    }, 500);
    await closed;
    clearTimeout(hurry);
  }

  #accept(socket: Socket): void {
    this.#sockets.add(socket);
    socket.once('close', () => this.#sockets.delete(socket));
    void serveClient(socket, this.#context);
  }

  #listen(): Promise<void> {
    const { listenHost, listenPort } = this.#context.config;
    return new Promise((resolve, reject) => {
      this.#server.once('error', (error: NodeJS.ErrnoException) =>
        reject(
          new LakebaseError(
            'CONFIG',
            error.code === 'EADDRINUSE'
              ? `port ${listenPort} on ${listenHost} is taken; choose another one (LAKEBASE_PG_PORT)`
              : `cannot listen on ${listenHost}:${listenPort}: ${error.message}`,
            { cause: error },
          ),
        ),
      );
      this.#server.listen({ host: listenHost, port: listenPort, backlog: BACKLOG }, () => resolve());
    });
  }
}
