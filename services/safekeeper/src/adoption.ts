/** Carries out `elected` (docs/protocols/election.md, step 4): the decisions are wal-quorum's, the order of the writes is this file. */
import type { ElectedRequest, PeerAddress, SafekeeperClient } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import { type Term, formatLsn, parseLsn, parseTerm } from '@lakebase/ids';
import { type Configuration, type Elected, finishElected, historyFromJson, planElected } from '@lakebase/wal-quorum';
import { copyFromPeer, describeCopy } from './peer-copy.ts';
import type { WalTimeline } from './wal-timeline.ts';

export interface AdoptionOptions {
  readonly secret: string;
  readonly rebuildDelayMs: number;
  readonly log: Logger;
}

export function electedFromJson(request: ElectedRequest, configuration: Configuration): Elected {
  return {
    term: parseTerm(request.term),
    termStartLsn: parseLsn(request.termStartLsn),
    lastRecordLsn: parseLsn(request.lastRecordLsn),
    termHistory: historyFromJson(request.termHistory),
    configuration,
    donor: request.donor.id,
    voters: request.voters,
  };
}

/** Durable and complete when it resolves. FENCED when a newer term exists. */
export function adopt(timeline: WalTimeline, request: Elected, donor: PeerAddress, options: AdoptionOptions): Promise<void> {
  return timeline.adoptions.run(() => adoptNow(timeline, request, donor, options));
}

async function adoptNow(timeline: WalTimeline, request: Elected, donor: PeerAddress, options: AdoptionOptions): Promise<void> {
  timeline.flush();
  const plan = planElected(timeline.state, request);
  if (plan.kind === 'refused') throw new LakebaseError(plan.term > request.term ? 'FENCED' : 'CONFLICT', plan.reason);
  if (plan.kind === 'adopt') {
    // A vote given just before the disk was lost may still be on its way to a candidate.
    if (timeline.rebuiltAt !== undefined && performance.now() - timeline.rebuiltAt < options.rebuildDelayMs)
      throw new LakebaseError('UNAVAILABLE', 'this member was rebuilt a moment ago and still waits before it joins a term');
    if (plan.raiseTerm !== null) timeline.raiseTerm(plan.raiseTerm);
    if (plan.truncateTo !== null) timeline.truncate(plan.truncateTo);
    timeline.persist({ history: plan.history });
    if (plan.copyFrom < plan.copyTo) {
      const started = performance.now();
      await copyFromPeer(timeline, { secret: options.secret, donor, to: plan.copyTo, term: request.term });
      options.log.info(
        { ...describeCopy(plan.copyFrom, plan.copyTo, donor), ms: Math.round(performance.now() - started) },
        'copied WAL from a peer',
      );
    }
  }
  if (timeline.term !== request.term) throw new LakebaseError('FENCED', `term ${timeline.term} is newer`);
  const done = finishElected(timeline.state, request);
  if (done.damage !== timeline.control.damage) {
    timeline.persist({ damage: done.damage });
    timeline.rebuiltAt = undefined;
  }
  options.log.info({ timeline: timeline.timeline, term: request.term, startLsn: formatLsn(request.termStartLsn) }, 'term adopted');
}

/** A member that missed `elected` of a running term adopts it from one that did not: the message, forwarded. */
export async function adoptFromPeers(
  timeline: WalTimeline,
  term: Term,
  peers: readonly { readonly address: PeerAddress; readonly client: SafekeeperClient }[],
  options: AdoptionOptions,
): Promise<void> {
  let reason = 'no peer has adopted it';
  for (const { address, client } of peers) {
    try {
      const status = await client.status(timeline.project, timeline.timeline);
      const termHistory = historyFromJson(status.termHistory);
      const last = termHistory.at(-1);
      if (status.term !== term || last?.term !== term || parseLsn(status.flushRecordLsn) < last.startLsn) continue;
      // Who voted is not known here; naming ourselves keeps a rebuilt member out, as it must be.
      const request: Elected = {
        term,
        termStartLsn: last.startLsn,
        lastRecordLsn: parseLsn(status.lastRecordLsn),
        termHistory,
        configuration: timeline.configuration,
        donor: address.id,
        voters: [timeline.self],
      };
      return await adopt(timeline, request, address, options);
    } catch (error) {
      reason = `${address.id}: ${errorMessage(error)}`;
    }
  }
  throw new LakebaseError('CONFLICT', `this member has not adopted term ${term}: ${reason}`);
}
