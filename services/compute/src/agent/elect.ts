/** Runs an election over HTTP before a compute starts: the sans-I/O core (wal-quorum) decides, this file only carries messages.
 *  When it returns, a majority has adopted (term, startLsn): no older compute can acknowledge anything any more. Members that answer late
 *  still adopt in the background. */
import type { ElectedRequest, WalConfiguration } from '@lakebase/api';
import { LakebaseError, type Logger, errorMessage, isCode, sleep } from '@lakebase/base';
import { type Lsn, type ProjectUid, type Term, type TimelineId, formatLsn, parseLsn, parseTerm } from '@lakebase/ids';
import {
  type Configuration,
  Election,
  type ElectionAction,
  type ElectionWon,
  configurationFromJson,
  historyFromJson,
  historyToJson,
  isQuorum,
  planCandidacy,
  votersOf,
} from '@lakebase/wal-quorum';
import { type WalMember, membersAt } from './wal-members.ts';

export interface ElectionResult extends Pick<ElectionWon, 'term' | 'startLsn' | 'lastRecordLsn'> {
  /** By which it was won, and where those members are. */
  readonly configuration: Configuration;
  readonly members: readonly WalMember[];
}

const ATTEMPTS_MAX = 5;
const STATUS_MS = 1_500;
/** With a known last term the round of statuses is skipped, except every so often: only it lets the history be pruned. */
const STATUS_EVERY_TERMS = 16;

export interface Branch {
  readonly project: ProjectUid;
  readonly timeline: TimelineId;
}

export interface ElectOptions {
  readonly members: readonly WalMember[];
  readonly configuration: Configuration;
  readonly branch: Branch;
  /** The highest term the caller knows of this branch, or null. A guess that is too low costs one refused round, never safety. */
  readonly lastTerm: number | null;
  readonly token: string;
  readonly log: Logger;
}

export async function elect({ branch, lastTerm, token, log, ...first }: ElectOptions): Promise<ElectionResult> {
  let { members, configuration } = first;
  let atLeast = 0;
  let reason = '';
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const guess = attempt === 0 && lastTerm !== null && lastTerm % STATUS_EVERY_TERMS !== 0;
    const { term, commitFloor } = guess
      ? { term: lastTerm + 1, commitFloor: 0 as Lsn }
      : await candidacy(members, configuration, branch, log);
    const options = { term: Math.max(term, atLeast + 1) as Term, commitFloor, configuration };
    const outcome = await campaign(members, branch, options, log);
    if (!('lostTo' in outcome)) return { ...outcome, configuration, members };
    atLeast = outcome.lostTo;
    reason = outcome.reason;
    if (outcome.newer !== undefined) {
      configuration = configurationFromJson(outcome.newer.configuration);
      members = membersAt(outcome.newer.addresses, token);
      log.info({ generation: configuration.generation }, 'the members of this branch have changed');
    }
    await sleep(50 * (attempt + 1));
  }
  throw new LakebaseError('UNAVAILABLE', `no majority of safekeepers elects this compute: ${reason}`);
}

/** Statuses of a majority suffice for the term; the history is pruned only when all told their commit LSN. */
async function candidacy(
  members: readonly WalMember[],
  configuration: Configuration,
  { project, timeline }: Branch,
  log: Logger,
): Promise<{ term: Term; commitFloor: Lsn }> {
  const statuses = new Map<string, { term: Term; commitLsn: Lsn }>();
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
  if (!isQuorum(configuration, statuses.keys()))
    throw new LakebaseError('UNAVAILABLE', `only ${statuses.size} of ${members.length} safekeepers answer; a start needs a majority`);
  return planCandidacy(votersOf(configuration), statuses);
}

function campaign(
  members: readonly WalMember[],
  { project, timeline }: Branch,
  options: { term: Term; commitFloor: Lsn; configuration: Configuration },
  log: Logger,
): Promise<ElectionWon | { lostTo: number; reason: string; newer: WalConfiguration | undefined }> {
  return new Promise((resolve, reject) => {
    const election = new Election(options);
    const { term, configuration } = options;
    let newer: WalConfiguration | undefined;
    const heard = (told: WalConfiguration | undefined): { configuration?: Configuration } => {
      if (told === undefined) return {};
      newer = told;
      return { configuration: configurationFromJson(told.configuration) };
    };
    const step = (actions: () => readonly ElectionAction[]): void => {
      try {
        for (const action of actions()) perform(action);
      } catch (error) {
        reject(error);
      }
    };
    const perform = (action: ElectionAction): void => {
      if (action.kind === 'won') resolve(action.result);
      else if (action.kind === 'lost') resolve({ lostTo: action.highestTerm, reason: action.reason, newer });
      else if (action.kind === 'elected') void tellElected(action.to, action.request);
      else
        log.warn(
          { safekeeper: action.member, term, higherTerm: action.highestTerm },
          'safekeeper is at a higher term and cannot follow this compute',
        );
    };
    const refused = async (member: string, error: unknown): Promise<void> => {
      log.warn({ safekeeper: member, term, err: errorMessage(error) }, 'safekeeper refuses this election');
      const told = isCode(error, 'CONFLICT')
        ? await memberOf(member)
            .client.configuration(project, timeline)
            .catch(() => undefined)
        : undefined;
      const overtaken = told !== undefined && told.configuration.generation > configuration.generation ? told : undefined;
      step(() => election.onRefusal(member, { ...heard(overtaken), reason: errorMessage(error) }));
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
        configuration,
      };
      try {
        const answer = await member.client.elected(project, timeline, body);
        step(() => election.onElected(to, { term: parseTerm(answer.term), flushRecordLsn: parseLsn(answer.flushRecordLsn) }));
      } catch (error) {
        await refused(to, error);
      }
    };
    const memberOf = (id: string): WalMember => {
      const member = members.find((m) => m.peer.id === id);
      if (member === undefined) throw new LakebaseError('INTERNAL', `${id} is no member`);
      return member;
    };
    for (const id of votersOf(configuration))
      if (!members.some((m) => m.peer.id === id)) step(() => election.onRefusal(id, { reason: 'nobody knows where it is' }));
    for (const { peer, client } of members) {
      client.vote(project, timeline, { term, configuration }).then(
        (v) => {
          if (!v.granted)
            return step(() =>
              election.onRefusal(peer.id, { term: parseTerm(v.term), ...heard(v.newer), reason: `has granted term ${v.term}` }),
            );
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
