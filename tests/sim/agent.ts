/** A simulated compute host: campaigns with the real Election class, then plays Postgres. The compute writes records in its term, sends
 *  byte ranges to whoever replicates from it, and tells its client that a commit is durable once two members report a flush beyond it.
 *
 *  One agent reuses its address for all its computes, so messages of an old compute's connections reach a newer one, as a reused port would. */
import type { Lsn, Term } from '@lakebase/ids';
import { Election, type ElectionAction, planCandidacy } from '@lakebase/wal-quorum';
import type { Leader } from './checker.ts';
import { type SimRecord, countUpTo, overlapping } from './log.ts';
import type { Message, Process } from './messages.ts';
import { MEMBERS, type World } from './world.ts';

/** A candidacy is given up after this long: rebuilt members rely on it (docs/protocols/election.md, Damaged). */
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
    for (const to of MEMBERS) this.#send(to, { kind: 'statusRequest', attempt: candidacy.attempt });
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
    const plan = planCandidacy(MEMBERS, candidacy.statuses);
    const term = Math.max(plan.term, this.#highestTerm + 1) as Term;
    candidacy.election = new Election({ members: MEMBERS, term, commitFloor: plan.commitFloor });
    for (const to of MEMBERS) this.#send(to, { kind: 'voteRequest', attempt: candidacy.attempt, term });
  }

  #act(candidacy: Candidacy, actions: readonly ElectionAction[]): void {
    for (const action of actions) {
      if (action.kind === 'elected') {
        this.#registerLeader(candidacy, action.request.donor, action.request.termStartLsn, action.request.term);
        this.#send(action.to, { kind: 'elected', attempt: candidacy.attempt, request: action.request });
      } else if (action.kind === 'won') this.#startCompute(candidacy, action.result.term, action.result.startLsn);
      else if (action.kind === 'lost' || (this.#persistent && this.#world.random.chance(0.1))) {
        this.#highestTerm = Math.max(this.#highestTerm, action.highestTerm);
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
      for (const member of MEMBERS) {
        for (const action of election.retry(member)) {
          if (action.kind === 'elected') this.#send(member, { kind: 'elected', attempt: candidacy.attempt, request: action.request });
        }
      }
      if (this.#compute !== null) for (const to of election.adopted) this.#send(to, { kind: 'subscribe', term: election.term });
      this.#retry(candidacy);
    });
  }

  // ---- Postgres

  #startCompute(candidacy: Candidacy, term: number, startLsn: number): void {
    const leader = this.#world.checker.leaders.get(term) as Leader;
    this.#compute = { term, startLsn, log: leader.log, end: startLsn, acknowledged: startLsn, reports: new Map(), sessions: new Map() };
    for (const to of candidacy.election?.adopted ?? []) this.#send(to, { kind: 'subscribe', term });
    this.#write(this.#compute);
    this.#work(this.#compute);
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
      const to = Math.min(compute.end, from + 8 * this.#world.random.between(1, 40));
      session.sent = to;
      const records = overlapping(compute.log, from, to);
      this.#send(member, { kind: 'wal', term: compute.term, session: session.session, from, to, records });
    }
  }

  #reported(compute: Compute, member: string, lsn: number): void {
    compute.reports.set(member, Math.max(lsn, compute.reports.get(member) ?? 0));
    const [, second] = [...compute.reports.values()].sort((a, b) => b - a);
    if (second === undefined || second <= compute.acknowledged) return;
    let last = 0;
    for (let i = countUpTo(compute.log, compute.acknowledged); i < compute.log.length; i++) {
      const record = compute.log[i] as SimRecord;
      if (record.end > second) break;
      if (record.commit) last = record.end;
      if (record.commit) this.#world.checker.counts.acknowledged++;
    }
    compute.acknowledged = Math.max(compute.acknowledged, second);
    if (last > 0) this.#world.checker.claim(compute.log, last, compute.term, `client of ${this.id} in term ${compute.term}`);
  }

  receive(from: string, message: Message): void {
    const candidacy = this.#candidacy;
    const election = candidacy?.election ?? null;
    const compute = this.#compute;
    switch (message.kind) {
      case 'status':
        if (candidacy === null || message.attempt !== candidacy.attempt || election !== null) return;
        candidacy.statuses.set(from, { term: message.term as Term, commitLsn: message.commitLsn as Lsn });
        if (candidacy.statuses.size === MEMBERS.length) this.#askForVotes(candidacy);
        return;
      case 'vote':
        if (candidacy === null || election === null || message.attempt !== candidacy.attempt) return;
        candidacy.logs.set(from, message.log);
        return this.#act(candidacy, election.onVote(message.vote));
      case 'refused':
        if (candidacy === null || election === null || message.attempt !== candidacy.attempt) return;
        return this.#act(candidacy, election.onRefusal(from, { term: message.term as Term, reason: message.reason }));
      case 'adopted':
        if (candidacy === null || election === null || message.attempt !== candidacy.attempt) return;
        this.#act(candidacy, election.onElected(from, { term: message.term as Term, flushRecordLsn: message.flushRecordLsn as Lsn }));
        if (this.#compute !== null) this.#send(from, { kind: 'subscribe', term: this.#compute.term });
        return;
      case 'startReplication':
        if (compute === null || (message.term !== compute.term && !this.#world.has('stream-without-term-check'))) return;
        if (message.from < compute.startLsn || message.from > compute.end) return;
        compute.sessions.set(from, { session: message.session, sent: message.from });
        return this.#ship(compute, from);
      case 'flushed':
        if (compute === null || message.term !== compute.term) return;
        return this.#reported(compute, from, message.lsn);
    }
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
