/** A simulated compute host: campaigns with the real Election class, then plays Postgres. The compute writes records in its term, sends
 *  byte ranges to whoever replicates from it, and tells its client that a commit is durable once the members that `synchronous_standby_names` asks for
 *  report a flush beyond it. When a member says that there is a newer configuration, all streams end before it counts by that one.
 *
 *  One agent reuses its address for all its computes, so messages of an old compute's connections reach a newer one, as a reused port would. */
import type { Lsn, Term } from '@lakebase/ids';
import {
  type Configuration,
  Election,
  type ElectionAction,
  type StandbyRule,
  majorityOf,
  nodeOf,
  planCandidacy,
  standbyRules,
  votersOf,
} from '@lakebase/wal-quorum';
import type { Leader } from './checker.ts';
import { type SimRecord, countUpTo, overlapping } from './log.ts';
import type { Message, Process } from './messages.ts';
import { FIRST_CONFIGURATION, NODES, type World } from './world.ts';

/** A candidacy is given up after this long: members do not wait for it. */
export const ELECTION_MS_MAX = 500;
const STATUS_WAIT_MS = 25;

interface Candidacy {
  readonly attempt: number;
  readonly statuses: Map<string, { term: Term; commitLsn: Lsn }>;
  /** Logs of the voters when they voted, for the checker. */
  readonly logs: Map<string, readonly SimRecord[]>;
  election: Election | null;
}
interface Session {
  readonly session: number;
  sent: number;
}
interface Compute {
  configuration: Configuration;
  rule: StandbyRule;
  readonly term: number;
  readonly startLsn: number;
  /** The leader's log, shared with the checker. */
  readonly log: SimRecord[];
  end: number;
  acknowledged: number;
  readonly reports: Map<string, number>;
  readonly sessions: Map<string, Session>;
}

export class Agent implements Process {
  readonly id: string;
  readonly #world: World;
  #candidacy: Candidacy | null = null;
  #compute: Compute | null = null;
  /** Invalidates timers of what was stopped. */
  #life = 0;
  #highestTerm = 0;
  #persistent = false;
  /** The newest it has heard of; what it campaigns by. */
  #configuration: Configuration = FIRST_CONFIGURATION;

  constructor(id: string, world: World) {
    this.id = id;
    this.#world = world;
    world.add(this);
  }

  get running(): boolean {
    return this.#compute !== null;
  }
  get busy(): boolean {
    return this.#compute !== null || this.#candidacy !== null;
  }
  get term(): number {
    return this.#compute?.term ?? 0;
  }
  get startLsn(): number {
    return this.#compute?.startLsn ?? 0;
  }
  get generation(): number {
    return this.#compute?.configuration.generation ?? 0;
  }
  get acknowledged(): number {
    return this.#compute?.acknowledged ?? 0;
  }

  /** kill -9. */
  stop(): void {
    this.#life++;
    this.#candidacy = null;
    this.#compute = null;
    this.#persistent = false;
  }

  /** `persistent`: tries again until it wins. */
  campaign(persistent: boolean): void {
    this.stop();
    this.#persistent = persistent;
    const candidacy: Candidacy = { attempt: this.#world.id(), statuses: new Map(), logs: new Map(), election: null };
    this.#candidacy = candidacy;
    // The compute host asks the Manager, which may be away; then it goes by what it knows.
    this.#send('register', { kind: 'registerRead' });
    for (const to of NODES) this.#send(to, { kind: 'statusRequest', attempt: candidacy.attempt });
    this.#after(STATUS_WAIT_MS, () => this.#askForVotes(candidacy));
    this.#after(ELECTION_MS_MAX, () => {
      if (this.#candidacy === candidacy && this.#compute === null) this.#lost();
    });
  }

  #lost(): void {
    const again = this.#persistent;
    this.stop();
    if (again) this.#after(this.#world.random.between(5, 60), () => this.campaign(true));
  }

  #askForVotes(candidacy: Candidacy): void {
    if (this.#candidacy !== candidacy || candidacy.election !== null) return;
    const configuration = this.#configuration;
    const plan = planCandidacy(votersOf(configuration), candidacy.statuses);
    const term = Math.max(plan.term, this.#highestTerm + 1) as Term;
    candidacy.election = new Election({ configuration, term, commitFloor: plan.commitFloor });
    for (const to of votersOf(configuration))
      this.#send(nodeOf(to), { kind: 'voteRequest', attempt: candidacy.attempt, term, configuration });
  }

  #act(candidacy: Candidacy, actions: readonly ElectionAction[]): void {
    for (const action of actions) {
      if (action.kind === 'elected') {
        this.#registerLeader(candidacy, action.request.donor, action.request.termStartLsn, action.request.term);
        this.#send(nodeOf(action.to), { kind: 'elected', attempt: candidacy.attempt, request: action.request });
      } else if (action.kind === 'won') this.#startCompute(candidacy, action.result.term, action.result.startLsn);
      else if (action.kind === 'lost' || (this.#persistent && this.#world.random.chance(0.1))) {
        this.#highestTerm = Math.max(this.#highestTerm, action.highestTerm);
        if (action.kind === 'lost') this.#heardOf(action.configuration);
        return this.#lost();
      }
    }
  }

  #registerLeader(candidacy: Candidacy, donor: string, startLsn: number, term: number): void {
    const { checker } = this.#world;
    if (checker.leaders.get(term)?.candidacy === candidacy.attempt) return;
    const log = candidacy.logs.get(donor) ?? [];
    const leader: Leader = { candidacy: candidacy.attempt, term, log: log.slice(0, countUpTo(log, startLsn)) };
    this.#world.note(() => `${this.id} elected in term ${term} at ${startLsn}, donor ${donor}`);
    checker.elected(leader);
    if (this.#world.random.chance(this.#world.leaderDeathChance)) this.#after(this.#world.random.between(1, 60), () => this.#lost());
    this.#retry(candidacy);
  }

  /** Members that did not answer are asked to adopt again, those that did to subscribe, for as long as this candidacy lives. */
  #retry(candidacy: Candidacy): void {
    this.#after(40, () => {
      const { election } = candidacy;
      if (this.#candidacy !== candidacy || election === null) return;
      for (const member of votersOf(election.configuration)) {
        for (const action of election.retry(member)) {
          if (action.kind === 'elected')
            this.#send(nodeOf(member), { kind: 'elected', attempt: candidacy.attempt, request: action.request });
        }
      }
      this.#retry(candidacy);
    });
  }

  // ---- Postgres

  #startCompute(candidacy: Candidacy, term: number, startLsn: number): void {
    const leader = this.#world.checker.leaders.get(term) as Leader;
    const { configuration } = candidacy.election as Election;
    const rule = this.#world.random.pick(standbyRules(configuration));
    this.#compute = {
      configuration,
      rule,
      term,
      startLsn,
      log: leader.log,
      end: startLsn,
      acknowledged: startLsn,
      reports: new Map(),
      sessions: new Map(),
    };
    this.#poll(this.#compute);
    this.#write(this.#compute);
    this.#work(this.#compute);
  }

  #poll(compute: Compute): void {
    if (this.#compute !== compute) return;
    this.#subscribe(compute);
    const complete = votersOf(compute.configuration).every((id) => compute.sessions.has(id));
    this.#after(complete ? this.#world.pollMs : 40, () => this.#poll(compute));
  }

  /** Every member is told again and again; one that missed `elected` is pointed at one that did not. */
  #subscribe({ configuration, term, sessions }: Compute): void {
    for (const member of votersOf(configuration)) {
      this.#send(nodeOf(member), { kind: 'subscribe', term, configuration });
      if (sessions.has(member) || sessions.size === 0) continue;
      this.#send(nodeOf(member), { kind: 'catchUp', donor: nodeOf(this.#world.random.pick([...sessions.keys()])) });
    }
  }

  #heardOf(configuration: Configuration): void {
    if (configuration.generation > this.#configuration.generation) this.#configuration = configuration;
    const compute = this.#compute;
    if (compute === null || configuration.generation <= compute.configuration.generation) return;
    if (configuration.newMembers === null && !this.#world.random.chance(0.7)) return;
    this.#world.note(() => `${this.id} goes by configuration ${configuration.generation}`);
    // Settings are reloaded and all streams of members ended before the first of the new generation is let in.
    compute.configuration = configuration;
    compute.rule = this.#world.random.pick(standbyRules(configuration));
    compute.reports.clear();
    compute.sessions.clear();
    this.#subscribe(compute);
  }

  #work(compute: Compute): void {
    this.#after(this.#world.random.between(2, 20), () => {
      if (this.#compute !== compute) return;
      for (let n = this.#world.random.between(1, 3); n > 0; n--) this.#write(compute);
      this.#work(compute);
    });
  }

  #write(compute: Compute): void {
    const { random } = this.#world;
    const start = compute.end;
    const end = start + 8 * random.between(3, 25);
    const prevId = compute.log.at(-1)?.id ?? 0;
    compute.log.push({ id: this.#world.id(), prevId, term: compute.term, start, end, commit: random.chance(0.6) });
    compute.end = end;
    for (const member of compute.sessions.keys()) this.#ship(compute, member);
  }

  #ship(compute: Compute, member: string): void {
    const session = compute.sessions.get(member);
    if (session === undefined) return;
    while (session.sent < compute.end) {
      const from = session.sent;
      // Far behind: what comes out of order is sent again, so a backlog goes in few pieces.
      const backlog = 8 * Math.floor((compute.end - from) / 32);
      const to = Math.min(compute.end, from + Math.max(backlog, 8 * this.#world.random.between(1, 40)));
      session.sent = to;
      const records = overlapping(compute.log, from, to);
      this.#send(nodeOf(member), { kind: 'wal', term: compute.term, session: session.session, from, to, records });
    }
  }

  #reported(compute: Compute, member: string, lsn: number): void {
    compute.reports.set(member, Math.max(lsn, compute.reports.get(member) ?? 0));
    const acknowledged = this.#counted(compute);
    if (acknowledged === undefined || acknowledged <= compute.acknowledged) return;
    let last = 0;
    for (let i = countUpTo(compute.log, compute.acknowledged); i < compute.log.length; i++) {
      const record = compute.log[i] as SimRecord;
      if (record.end > acknowledged) break;
      if (record.commit) last = record.end;
      if (record.commit) this.#world.checker.counts.acknowledged++;
    }
    compute.acknowledged = Math.max(compute.acknowledged, acknowledged);
    if (last > 0) this.#world.checker.claim(compute.log, last, compute.term, `client of ${this.id} in term ${compute.term}`);
  }

  /** What Postgres does with `ANY count (names)`. In a change the agent may choose between two rules at any time. */
  #counted(compute: Compute): number | undefined {
    const { configuration, reports } = compute;
    if (configuration.newMembers !== null && this.#world.random.chance(0.2))
      compute.rule = this.#world.random.pick(standbyRules(configuration));
    const lax = configuration.newMembers !== null && this.#world.has('commit-by-new-majority');
    const { count, names } = lax
      ? { count: majorityOf(configuration.newMembers ?? []), names: configuration.newMembers ?? [] }
      : this.#world.has('any-two-of-the-union')
        ? { count: majorityOf(configuration.members), names: votersOf(configuration) }
        : compute.rule;
    const lsns = names.map((id) => reports.get(id)).filter((lsn) => lsn !== undefined);
    return lsns.sort((a, b) => b - a)[count - 1];
  }

  receive(from: string, message: Message): void {
    const candidacy = this.#candidacy;
    const election = candidacy?.election ?? null;
    const compute = this.#compute;
    switch (message.kind) {
      case 'registerValue':
        return this.#heardOf(message.value.configuration);
      case 'stopCompute':
        return compute === null ? undefined : this.#lost();
      case 'newerConfiguration':
        return this.#heardOf(message.configuration);
      case 'status':
        this.#heardOf(message.configuration);
        if (candidacy === null || message.attempt !== candidacy.attempt || election !== null) return;
        candidacy.statuses.set(message.member, { term: message.term as Term, commitLsn: message.commitLsn as Lsn });
        if (votersOf(this.#configuration).every((id) => candidacy.statuses.has(id)) && this.#world.random.chance(0.5))
          this.#askForVotes(candidacy);
        return;
      case 'vote':
        if (candidacy === null || election === null || message.attempt !== candidacy.attempt) return;
        if (!votersOf(election.configuration).includes(message.vote.voter)) return;
        candidacy.logs.set(message.vote.voter, message.log);
        return this.#act(candidacy, election.onVote(message.vote));
      case 'refused':
        if (candidacy === null || election === null || message.attempt !== candidacy.attempt) return;
        if (!votersOf(election.configuration).includes(message.member)) return this.#heardOf(message.configuration ?? this.#configuration);
        return this.#act(candidacy, this.#refused(election, message));
      case 'adopted':
        if (candidacy === null || election === null || message.attempt !== candidacy.attempt) return;
        if (!votersOf(election.configuration).includes(message.member)) return;
        this.#act(
          candidacy,
          election.onElected(message.member, { term: message.term as Term, flushRecordLsn: message.flushRecordLsn as Lsn }),
        );
        if (this.#compute !== null) this.#subscribe(this.#compute);
        return;
      case 'startReplication':
        if (compute === null || (message.term !== compute.term && !this.#world.has('stream-without-term-check'))) return;
        if (message.generation !== compute.configuration.generation) return;
        if (message.from < compute.startLsn || message.from > compute.end) return;
        compute.sessions.set(message.member, { session: message.session, sent: message.from });
        return this.#ship(compute, message.member);
      case 'flushed':
        if (compute === null || message.term !== compute.term) return;
        if (message.generation !== compute.configuration.generation) return;
        return this.#reported(compute, message.member, message.lsn);
    }
  }

  #refused(election: Election, message: Extract<Message, { kind: 'refused' }>): readonly ElectionAction[] {
    const { term, reason, configuration } = message;
    if (configuration !== undefined) this.#heardOf(configuration);
    return election.onRefusal(message.member, { term: term as Term, reason, ...(configuration === undefined ? {} : { configuration }) });
  }

  #send(to: string, message: Message): void {
    this.#world.send(this.id, to, message);
  }
  #after(delay: number, run: () => void): void {
    const life = this.#life;
    this.#world.clock.after(delay, () => {
      if (this.#life === life) run();
    });
  }
}
