/** What a timeline's member tells of itself (GET status). */
import type { WalTimelineStatus } from '@lakebase/api';
import { formatLsn } from '@lakebase/ids';
import { historyToJson, lineagesToJson } from '@lakebase/wal-quorum';
import type { WalTimeline } from './wal-timeline.ts';

export function statusOf(t: WalTimeline, disk?: { readonly pressure: number; readonly slowDisk: boolean }): WalTimelineStatus {
  const s = t.state;
  return {
    id: t.memberId,
    systemId: t.control.systemId.toString(),
    pgVersion: t.control.pgVersion,
    startLsn: formatLsn(t.control.startLsn),
    prevRecordLsn: formatLsn(t.control.prevRecordLsn),
    ...(t.control.lineages === undefined ? {} : { lineages: lineagesToJson(t.control.lineages) }),
    term: s.term,
    termHistory: historyToJson(s.history),
    flushLsn: formatLsn(s.flushLsn),
    flushRecordLsn: formatLsn(s.flushRecordLsn),
    lastRecordLsn: formatLsn(s.lastRecordLsn),
    commitLsn: formatLsn(s.commitLsn),
    streaming: t.feeder === undefined ? null : { term: t.feeder.term },
    member: s.self,
    generation: s.configuration.generation,
    damaged: s.damage === null ? null : `${s.damage.kind}: ${s.damage.reason}`,
    firstLsn: formatLsn(t.firstLsn),
    offloadedLsn: formatLsn(t.offloadedLsn),
    tailLsn: formatLsn(t.tailLsn),
    pagesLsn: formatLsn(t.pagesLsn),
    ...disk,
  };
}
