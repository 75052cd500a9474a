/** Carries out `elected` (docs/protocols/election.md, step 4): the decisions are wal-quorum's, the order of the writes is this file. */
import type { ElectedRequest, PeerAddress, WalTimelineStatus } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage } from '@lakebase/base';
import { type Term, formatLsn, parseLsn, parseTerm } from '@lakebase/ids';
import { type Configuration, type Elected, finishElected, historyFromJson, planElected } from '@lakebase/wal-quorum';
import { copyFromPeer, describeCopy } from './peer-copy.ts';
import type { PeerNode } from './node-book.ts';
import type { WalTimeline } from './wal-timeline.ts';

export interface AdoptionOptions {
  readonly secret: string;
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
  if (request.configuration.generation > timeline.configuration.generation) timeline.follow(request.configuration);
  timeline.flush();
  const plan = planElected(timeline.state, request);
  if (plan.kind === 'refused') throw new LakebaseError(plan.term > request.term ? 'FENCED' : 'CONFLICT', plan.reason);
  if (plan.kind === 'adopt') {
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
  if (timeline.configuration.generation !== request.configuration.generation)
    throw new LakebaseError('CONFLICT', `configuration ${timeline.configuration.generation} is in force now`);
  const done = finishElected(timeline.state, request);
  if (done.damage !== timeline.control.damage) {
    timeline.persist({ damage: done.damage });
  }
  options.log.info({ timeline: timeline.timeline, term: request.term, startLsn: formatLsn(request.termStartLsn) }, 'term adopted');
}

/** A member that missed `elected` of a running term adopts it from one that did not: the message, forwarded. */
export async function adoptFromPeers(
  timeline: WalTimeline,
  term: Term,
  peers: readonly PeerNode[],
  options: AdoptionOptions,
): Promise<void> {
  let reason = 'no peer has adopted it';
  for (const { address, client } of peers) {
    try {
      const status = await client.status(timeline.project, timeline.timeline);
      const request = runningTerm(timeline, status, address);
      if (request?.term !== term) continue;
      return await adopt(timeline, request, address, options);
    } catch (error) {
      reason = `${address.id}: ${errorMessage(error)}`;
    }
  }
  throw new LakebaseError('CONFLICT', `this member has not adopted term ${term}: ${reason}`);
}

/** The message `elected` of the term that `status` shows, when that member has adopted it. */
function runningTerm(timeline: WalTimeline, status: WalTimelineStatus, donor: PeerAddress): Elected | undefined {
  const termHistory = historyFromJson(status.termHistory);
  const last = termHistory.at(-1);
  if (last === undefined || last.term !== status.term || parseLsn(status.flushRecordLsn) < last.startLsn) return undefined;
  const { configuration, self } = timeline;
  const [termStartLsn, lastRecordLsn] = [last.startLsn, parseLsn(status.lastRecordLsn)];
  return { term: parseTerm(status.term), termStartLsn, lastRecordLsn, termHistory, configuration, donor: donor.id, voters: [self] };
}

/** Brings this member up to where `donor` is, in the term that one has adopted: what a new member needs before it may be counted on. A compute that
 *  streams here does the same. */
export async function catchUp(timeline: WalTimeline, donor: PeerNode, options: AdoptionOptions): Promise<void> {
  const { address, client } = donor;
  const status = await client.status(timeline.project, timeline.timeline);
  const request = runningTerm(timeline, status, address);
  if (request === undefined) throw new LakebaseError('UNAVAILABLE', `${address.id} has not adopted its term ${status.term}`);
  await adopt(timeline, request, address, options);
  await timeline.adoptions.run(async () => {
    const to = parseLsn(status.flushRecordLsn);
    if (timeline.feeder !== undefined || timeline.flushLsn >= to) return;
    await copyFromPeer(timeline, { secret: options.secret, donor: address, to, term: request.term });
    options.log.info({ timeline: timeline.timeline, donor: address.id, to: formatLsn(to) }, 'caught up with a peer');
  });
}
