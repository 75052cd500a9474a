/** Runs an election over HTTP before a compute starts: the sans-I/O core (wal-quorum) decides, this file only carries messages.
 *  When it returns, a majority has adopted (term, startLsn): no older compute can acknowledge anything any more. Members that answer late
 *  still adopt in the background. */
import type { ElectedRequest, PeerAddress, SafekeeperClient } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage, sleep } from '@lakebase/base';
import { type Lsn, type ProjectUid, type Term, type TimelineId, formatLsn, parseLsn, parseTerm } from '@lakebase/ids';
import {
  Election,
  type ElectionAction,
  type ElectionWon,
  historyFromJson,
  historyToJson,
  planCandidacy,
  staticConfiguration,
} from '@lakebase/wal-quorum';

export interface ElectionMember {
  readonly peer: PeerAddress;
  readonly client: SafekeeperClient;
}
export type ElectionResult = Pick<ElectionWon, 'term' | 'startLsn' | 'lastRecordLsn'>;

const ATTEMPTS_MAX = 5;
const STATUS_MS = 1_500;
/** With a known last term the round of statuses is skipped, except every so often: only it lets the history be pruned. */
const STATUS_EVERY_TERMS = 16;

export interface Branch {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
}

/** `lastTerm`: the highest term the caller knows of this branch, or null. A guess that is too low costs one refused round, never safety. */
export async function elect(
  members: readonly ElectionMember[],
  branch: Branch,
  lastTerm: number | null,
  log: Logger,
): Promise<ElectionResult> {
  let atLeast = 0;
  let reason = '';
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const guess = attempt === 0 && lastTerm !== null && lastTerm % STATUS_EVERY_TERMS !== 0;
    const { term, commitFloor } = guess ? { term: lastTerm + 1, commitFloor: 0 as Lsn } : await candidacy(members, branch, log);
    const outcome = await campaign(members, branch, { term: Math.max(term, atLeast + 1) as Term, commitFloor }, log);
    if (!('lostTo' in outcome)) return outcome;
    atLeast = outcome.lostTo;
    reason = outcome.reason;
    await sleep(50 * (attempt + 1));
  }
  throw new LakebaseError('UNAVAILABLE', `no majority of safekeepers elects this compute: ${reason}`);
}

/** Statuses of a majority suffice for the term; the history is pruned only when all told their commit LSN. */
async function candidacy(
  members: readonly ElectionMember[],
  { project, timeline }: Branch,
  log: Logger,
): Promise<{ term: Term; commitFloor: Lsn }> {
  const statuses = new Map<string, { term: Term; commitLsn: Lsn }>();
  const quorum = Math.floor(members.length / 2) + 1;
  const asked = members.map(async ({ peer, client }) => {
    try {
      const status = await client.status(project, timeline);
      statuses.set(peer.id, { term: parseTerm(status.term), commitLsn: parseLsn(status.commitLsn) });
    } catch (error) {
      log.warn({ safekeeper: peer.id, err: errorMessage(error) }, 'safekeeper does not tell its status');
    }
  });
  // A dead member refuses at once; only one that hangs is not waited for.
  const patience = new AbortController();
  await Promise.race([Promise.all(asked), sleep(STATUS_MS, patience.signal).catch(() => {})]);
  patience.abort();
  if (statuses.size < quorum)
    throw new LakebaseError('UNAVAILABLE', `only ${statuses.size} of ${members.length} safekeepers answer; a start needs ${quorum}`);
  return planCandidacy(
    members.map((m) => m.peer.id),
    statuses,
  );
}

function campaign(
  members: readonly ElectionMember[],
  { project, timeline }: Branch,
  options: { term: Term; commitFloor: Lsn },
  log: Logger,
): Promise<ElectionResult | { lostTo: number; reason: string }> {
  return new Promise((resolve, reject) => {
    const election = new Election({ configuration: staticConfiguration(members.map((m) => m.peer.id)), ...options });
    const { term } = options;
    const step = (actions: () => readonly ElectionAction[]): void => {
      try {
        for (const action of actions()) perform(action);
      } catch (error) {
        reject(error);
      }
    };
    const perform = (action: ElectionAction): void => {
      if (action.kind === 'won') resolve(action.result);
      else if (action.kind === 'lost') resolve({ lostTo: action.highestTerm, reason: action.reason });
      else if (action.kind === 'elected') void tellElected(action.to, action.request);
      else
        log.warn(
          { safekeeper: action.member, term, higherTerm: action.highestTerm },
          'safekeeper is at a higher term and cannot follow this compute',
        );
    };
    const refused = (member: string, error: unknown): void => {
      log.warn({ safekeeper: member, term, err: errorMessage(error) }, 'safekeeper refuses this election');
      step(() => election.onRefusal(member, { reason: errorMessage(error) }));
    };
    const tellElected = async (to: string, request: NonNullable<typeof election.request>): Promise<void> => {
      const member = memberOf(to);
      const body: ElectedRequest = {
        term,
        termStartLsn: formatLsn(request.termStartLsn),
        lastRecordLsn: formatLsn(request.lastRecordLsn),
        termHistory: historyToJson(request.termHistory),
        donor: memberOf(request.donor).peer,
        voters: request.voters,
      };
      try {
        const answer = await member.client.elected(project, timeline, body);
        step(() => election.onElected(to, { term: parseTerm(answer.term), flushRecordLsn: parseLsn(answer.flushRecordLsn) }));
      } catch (error) {
        refused(to, error);
      }
    };
    const memberOf = (id: string): ElectionMember => {
      const member = members.find((m) => m.peer.id === id);
      if (member === undefined) throw new LakebaseError('INTERNAL', `${id} is no member`);
      return member;
    };
    for (const { peer, client } of members) {
      client.vote(project, timeline, { term }).then(
        (v) => {
          if (!v.granted) return step(() => election.onRefusal(peer.id, { term: parseTerm(v.term), reason: `has granted term ${v.term}` }));
          step(() =>
            election.onVote({
              voter: peer.id,
              term: parseTerm(v.term),
              lastLogTerm: parseTerm(v.lastLogTerm),
              flushRecordLsn: parseLsn(v.flushRecordLsn),
              lastRecordLsn: parseLsn(v.lastRecordLsn),
              commitLsn: parseLsn(v.commitLsn),
              termHistory: historyFromJson(v.termHistory),
            }),
          );
        },
        (error: unknown) => refused(peer.id, error),
      );
    }
  });
}
