/** What operators see: calls of KMS and how long they took, projects by state, age of cached keys, the audit log's health. */
import type { KeyState } from '@lakebase/api';
import { Counter, Gauge, Histogram, type Registry, readGauge } from '@lakebase/service-kit';
import type { KeyManager } from './key-manager.ts';
import type { KmsObserver } from './kms/kms-access.ts';
import type { WatchHub } from './watch-hub.ts';

const STATES: readonly KeyState[] = ['ACTIVE', 'UNREACHABLE', 'SUSPENDED', 'REVOKED', 'SHREDDED'];

export function kmsMetrics(registry: Registry): KmsObserver {
  const registers = [registry];
  const calls = new Counter({
    name: 'lakebase_kms_calls_total',
    help: 'calls of key management services',
    labelNames: ['provider', 'operation', 'outcome'],
    registers,
  });
  const seconds = new Histogram({
    name: 'lakebase_kms_call_seconds',
    help: 'how long key management services took',
    labelNames: ['provider', 'operation'],
    buckets: [0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5],
    registers,
  });
  return ({ operation, provider, outcome, seconds: took }) => {
    calls.inc({ provider, operation, outcome });
    seconds.observe({ provider, operation }, took);
  };
}

export function registerMetrics(registry: Registry, manager: KeyManager, hub: WatchHub, auditBehind: () => number): void {
  const registers = [registry];
  const { cache, audit, clock } = manager.o;
  const gauge = readGauge.bind(undefined, registry);
  const states: Gauge = new Gauge({
    name: 'lakebase_key_projects',
    help: 'projects by state of their key',
    labelNames: ['state'],
    registers,
    collect: (): void => {
      for (const state of STATES) states.set({ state }, manager.projects().filter((p) => p.state === state).length);
    },
  });
  gauge('lakebase_kek_cached', 'unwrapped KEKs in memory', () => cache.size);
  gauge('lakebase_kek_cache_age_seconds', 'longest time since the KMS opened a KEK that is in memory', () => cache.oldestSeconds);
  gauge('lakebase_key_check_age_seconds', 'longest time since the key of a project was last checked with an answer', () => {
    const ages = manager
      .projects()
      .filter((p) => p.state !== 'SHREDDED')
      .map((p) => (clock.now() - Date.parse(p.lastSuccess ?? p.record.createTime)) / 1_000);
    return Math.max(0, ...ages);
  });
  gauge('lakebase_key_records_damaged', 'projects whose key record cannot be used', () => manager.o.store.damaged().size);
  gauge(
    'lakebase_key_records_not_copied',
    'key records whose newest content is not in the object store yet',
    () => manager.o.copies?.pending ?? 0,
  );
  gauge('lakebase_key_watchers', 'open watches', () => hub.size);
  gauge('lakebase_audit_sequence', 'number of the last audit line', () => audit.head.sequence);
  gauge('lakebase_audit_lines_not_copied', 'audit lines that are not in the object store yet', auditBehind);
  gauge('lakebase_audit_broken', '1 when the chain of the audit log does not hold', () => (audit.problem === undefined ? 0 : 1));
}
