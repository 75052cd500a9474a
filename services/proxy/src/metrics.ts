/** The proxy's Prometheus metrics. */
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';

export interface ProxyMetrics {
  readonly accepted: Counter;
  readonly refused: Counter<'reason'>;
  readonly cancels: Counter<'known'>;
  readonly bytes: Counter<'direction'>;
  readonly held: Gauge;
  readonly wakeSeconds: Histogram;
}

export function createMetrics(registry: Registry, gauges: { sessions: () => number; sockets: () => number }): ProxyMetrics {
  const registers = [registry];
  new Gauge({
    name: 'lakebase_proxy_sessions',
    help: 'Client sessions, held ones included',
    registers,
    collect() {
      this.set(gauges.sessions());
    },
  });
  new Gauge({
    name: 'lakebase_proxy_sockets',
    help: 'Open client sockets',
    registers,
    collect() {
      this.set(gauges.sockets());
    },
  });
  return {
    accepted: new Counter({ name: 'lakebase_proxy_sessions_total', help: 'Sessions relayed to a compute', registers }),
    refused: new Counter({
      name: 'lakebase_proxy_refused_total',
      help: 'Connections refused, by reason',
      labelNames: ['reason'],
      registers,
    }),
    cancels: new Counter({ name: 'lakebase_proxy_cancels_total', help: 'Cancel requests', labelNames: ['known'], registers }),
    bytes: new Counter({
      name: 'lakebase_proxy_bytes_total',
      help: 'Bytes relayed by ended sessions',
      labelNames: ['direction'],
      registers,
    }),
    held: new Gauge({ name: 'lakebase_proxy_held_clients', help: 'Clients waiting for their compute', registers }),
    wakeSeconds: new Histogram({
      name: 'lakebase_proxy_wake_seconds',
      help: 'Time an authenticated client waited for a compute that had to be started',
      buckets: [0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60, 120],
      registers,
    }),
  };
}
