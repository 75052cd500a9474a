/** Metrics of a safekeeper beyond its counters: the disk, and how far the peers are behind. */
import { readGauge } from '@lakebase/service-kit';
import { Gauge, type Registry } from 'prom-client';
import type { DiskBudget } from './disk-budget.ts';
import type { PeerListener } from './peer-feed.ts';
import type { WalTimeline } from './wal-timeline.ts';

export interface DiskGaugesOptions {
  readonly disk: DiskBudget;
  readonly slow: () => boolean;
  readonly peers: () => readonly PeerListener[];
  readonly timelines: Iterable<WalTimeline>;
}

export function addDiskGauges(registry: Registry, options: DiskGaugesOptions): void {
  const { disk, slow, peers, timelines } = options;
  const single = readGauge.bind(undefined, registry);
  single('lakebase_safekeeper_wal_disk_bytes', 'Disk that WAL takes', () => disk.usedBytes);
  single('lakebase_safekeeper_wal_disk_limit_bytes', 'Disk that WAL may take', () => disk.limitBytes);
  single('lakebase_safekeeper_disk_pressure', '0 while there is plenty of room for WAL, 1 when nearly none is left', () => disk.pressure);
  single('lakebase_safekeeper_slow_disk', '1 while flushes take long here', () => (slow() ? 1 : 0));
  single('lakebase_safekeeper_offload_lag_bytes', 'Committed WAL that is not in the object store yet', () => {
    let lag = 0;
    for (const t of timelines) if (t.archive !== undefined) lag += Math.max(0, t.readableLsn - Math.max(t.offloadedLsn, t.tailLsn));
    return lag;
  });
  single('lakebase_safekeeper_damaged_segments', 'WAL segments that failed their checks and wait for repair', () => {
    let holes = 0;
    for (const t of timelines) holes += t.holes.size;
    return holes;
  });
  const labelNames = ['peer'] as const;
  const connected = new Gauge({
    name: 'lakebase_safekeeper_peer_connected',
    help: '1 while the peer is heard',
    labelNames,
    registers: [registry],
    collect: () => {
      for (const p of peers()) connected.set({ peer: p.peerId }, p.connected ? 1 : 0);
    },
  });
  const behind = new Gauge({
    name: 'lakebase_safekeeper_peer_behind_bytes',
    help: 'The most that the peer lacks of WAL that this member has, on one timeline that a compute writes to',
    labelNames,
    registers: [registry],
    collect: () => {
      for (const { peerId } of peers()) {
        let most = 0;
        for (const t of timelines) {
          const peer = t.peerAt(peerId);
          if (t.feeder !== undefined && peer !== undefined) most = Math.max(most, t.flushLsn - peer.flushRecordLsn);
        }
        behind.set({ peer: peerId }, most);
      }
    },
  });
}
