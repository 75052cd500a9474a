/** Prometheus series of the pageserver. Names say unit and meaning; labels never grow with data (no relation, no page). */
import { eventLoopDelay, readGauge } from '@lakebase/service-kit';
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import { registerCacheMetrics } from './local-cache.ts';
import type { PageListener, PageMetrics } from './page-listener.ts';
import type { TimelineStore } from './store.ts';
import type { Attached } from './timeline-entry.ts';

export function registerMetrics(registry: Registry, store: TimelineStore, listener: () => PageListener | undefined): PageMetrics {
  const seconds = new Histogram({
    name: 'lakebase_page_request_seconds',
    help: 'Time from a page service request to its answer, waiting for WAL included',
    labelNames: ['type'],
    buckets: [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1, 10],
    registers: [registry],
  });
  const pages = new Counter({ name: 'lakebase_pages_served_total', help: 'Pages answered', registers: [registry] });
  const failures = new Counter({
    name: 'lakebase_page_request_failures_total',
    help: 'Failed page service requests',
    labelNames: ['code'],
    registers: [registry],
  });
  const gauge = readGauge.bind(undefined, registry);
  const perTimeline = (name: string, help: string, read: (t: Attached) => number): void => {
    new Gauge({
      name,
      help,
      labelNames: ['timeline'],
      registers: [registry],
      collect() {
        this.reset();
        for (const t of store.attached()) this.set({ timeline: t.timeline.id }, read(t));
      },
    });
  };
  perTimeline('lakebase_last_record_lsn', 'End of the last ingested record', (t) => t.timeline.lastRecordLsn);
  perTimeline('lakebase_disk_consistent_lsn', 'Durable in layers up to here', (t) => t.timeline.storage.diskConsistentLsn);
  perTimeline('lakebase_ingest_lag_bytes', 'WAL the safekeeper has and we have not', (t) =>
    Math.max(0, t.receiver.senderLsn - t.timeline.lastRecordLsn),
  );
  perTimeline('lakebase_records_ingested', 'WAL records ingested since the process started', (t) => t.timeline.recordsIngested);
  perTimeline('lakebase_redo_applied', 'Changes applied by reads since the process started', (t) => t.timeline.reader.applied);
  perTimeline('lakebase_layers', 'Layer files', (t) => t.timeline.storage.set.layers.length);
  perTimeline('lakebase_compactions', 'Merges since the process started', (t) => t.timeline.storage.compactions);
  perTimeline('lakebase_timeline_broken', '1 when ingest stopped for good', (t) => (t.timeline.broken === undefined ? 0 : 1));
  gauge('lakebase_timelines_locked', "Timelines whose project's key may not be used", () => store.locked);
  gauge('lakebase_timelines_damaged', 'Timelines whose files failed a check at attach', () => store.damaged);
  gauge('lakebase_page_connections', 'Open page service connections', () => listener()?.connections ?? 0);
  gauge('lakebase_frame_cache_bytes', 'Layer frames in memory', () => store.caches.frames.bytes);
  gauge('lakebase_page_cache_bytes', 'Materialised pages in memory', () => store.caches.pages.used);
  gauge('lakebase_timelines_idle', 'Timelines on this disk that nobody uses: not in memory', () => store.idle);
  gauge('lakebase_disk_free_bytes', 'Free space of the data directory', () => (Number.isFinite(store.disk.free) ? store.disk.free : 0));
  gauge('lakebase_ingest_held_up', '1 while no WAL is ingested because the disk is nearly full', () =>
    store.disk.room === undefined ? 0 : 1,
  );
  perTimeline(
    'lakebase_remote_consistent_lsn',
    'In the object store, under a confirmed generation, up to here',
    (t) => t.uploader?.remoteConsistentLsn ?? 0,
  );
  perTimeline('lakebase_upload_lag_bytes', 'WAL whose layers are on this disk only', (t) => t.uploader?.pendingBytes ?? 0);
  const { remote } = store;
  if (remote !== undefined) {
    const { counters } = remote;
    gauge('lakebase_upload_puts', 'Objects put since the process started', () => counters.puts);
    gauge('lakebase_upload_index_puts', 'Indexes among them', () => counters.indexPuts);
    gauge('lakebase_upload_bytes', 'Bytes of them', () => counters.putBytes);
    gauge('lakebase_upload_deletes', 'Objects deleted since the process started', () => counters.deletes);
    gauge('lakebase_upload_failures', 'Uploads that failed and were tried again', () => counters.failures);
  }
  registerCacheMetrics(registry, store.caches.layers);
  gauge('lakebase_event_loop_delay_p99_seconds', '99th percentile of event loop delay since the last scrape', eventLoopDelay());
  return {
    observe: (type, s, n) => {
      seconds.observe({ type }, s);
      if (n > 0) pages.inc(n);
    },
    failed: (code) => failures.inc({ code }),
  };
}
