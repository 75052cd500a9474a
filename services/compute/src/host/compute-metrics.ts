/** Metrics of the computes of this host: what their agents last said, by endpoint. */
import type { ComputeStatus } from '@lakebase/api';
import { Gauge, type Registry } from '@lakebase/service-kit';
import type { Computes } from './computes.ts';

const GAUGES: readonly (readonly [name: string, help: string, value: (s: ComputeStatus) => number | null | undefined])[] = [
  ['scratch_bytes', 'Local disk the compute uses', (s) => s.disk?.scratchBytes],
  ['clean_bytes', 'Pages on the local disk that storage has, so that they can be dropped', (s) => s.disk?.cleanBytes],
  ['clean_budget_bytes', 'Bound on those pages', (s) => s.disk?.cleanBudgetBytes],
  ['dropped_bytes', 'Pages dropped from the local disk so far', (s) => s.disk?.droppedBytes],
  ['prefetched_bytes', 'Hot pages fetched in the background so far', (s) => s.disk?.prefetchedBytes],
  ['settled_bytes', 'Changed pages that became droppable because storage has them, so far', (s) => s.disk?.settledBytes],
  ['adopted_bytes', 'New pages that rounds of settling have taken into the map, so far', (s) => s.disk?.adoptedBytes],
  ['settle_rounds', 'Rounds of settling so far', (s) => s.disk?.rounds],
  ['disk_full_relieved', 'Writes that found the disk full and went on after pages were dropped', (s) => s.disk?.roomsMade],
  ['disk_full_failed', 'Writes that found the disk full with nothing to drop', (s) => s.disk?.roomsDenied],
  ['ingest_lag_bytes', 'WAL the pageserver is not known to have ingested', (s) => s.backpressure?.ingestLagBytes],
  ['offload_lag_bytes', 'WAL that is not known to be in the object store', (s) => s.backpressure?.offloadLagBytes],
  ['safekeeper_pressure', 'Pressure of the disks of a majority of safekeepers, 0 to 1', (s) => s.backpressure?.pressure],
  ['wal_allowed_bytes_per_second', 'Rate at which WAL may be written; absent: not slowed', (s) => s.backpressure?.allowedBytesPerSecond],
  ['wal_slept_seconds', 'What slowing WAL has taken so far', (s) => (s.backpressure === undefined ? null : s.backpressure.sleptMs / 1_000)],
];

export function registerComputeMetrics(registry: Registry, computes: Computes): void {
  for (const [name, help, value] of GAUGES) {
    const gauge = new Gauge({
      name: `lakebase_compute_${name}`,
      help,
      labelNames: ['endpoint', 'compute'],
      registers: [],
      collect() {
        gauge.reset();
        for (const status of computes.list()) {
          const n = status.state === 'RUNNING' ? value(status) : null;
          if (n !== null && n !== undefined) gauge.set({ endpoint: status.endpointId, compute: status.computeId }, n);
        }
      },
    });
    registry.registerMetric(gauge);
  }
}
