/** A simulated safekeeper: the real acceptor functions of wal-quorum, with the I/O order of docs/protocols/election.md done on a simulated disk.
 *
 *  Operations are generators run one at a time; each `yield` is a disk write, and a crash may come during any of them: an atomic write (rename, truncate) is then
 *  done or not done, unsynced bytes survive as a random prefix. Nothing in memory survives. */
import type { Lsn, Term } from '@lakebase/ids';
import {
  type AcceptorState,
  type Damage,
  type Elected,
  type MemberPosition,
  type TermHistory,
  finishElected,
  handleVote,
  mayCopy,
  mayServePeer,
  mayStream,
  memberCommitLsn,
  planElected,
  positionOf,
  quorumCommit,
  readableLsn,
  voteOf,
} from '@lakebase/wal-quorum';
import { GENESIS_LSN, SimLog, overlapping } from './log.ts';
import type { Message, Process } from './messages.ts';
import { MEMBERS, type World } from './world.ts';

interface Control {
  readonly term: number;
  readonly history: TermHistory;
  readonly commitLsn: number;
  readonly damage: Damage | null;
}
interface DiskWrite {
  readonly done: () => void;
  /** A rename or truncation: in a crash it has happened or not. */
  readonly atomic: boolean;
}
type Operation = Generator<DiskWrite, void, void>;

const EMPTY: Control = { term: 0, history: [], commitLsn: GENESIS_LSN, damage: null };
const STALL_MS = 60;
const READ_BYTES_MAX = 400;

export class Member implements Process {
  readonly id: string;
  readonly #world: World;
  readonly log = new SimLog();
  up = true;
  #durable: Control = EMPTY;
  #memory: Control = EMPTY;
  /** Counts restarts: callbacks of an earlier life do nothing. */
  #life = 0;
  #queue: Operation[] = [];
  #running = false;
  #pending: DiskWrite | null = null;
  #flushQueued = false;
  #stream: { term: number; compute: string; session: number; progressAt: number } | null = null;
  #adoption: { request: Elected; agent: string; attempt: number; progressAt: number } | null = null;
  #peers = new Map<string, MemberPosition>();

  constructor(id: string, world: World) {
    this.id = id;
    this.#world = world;
    world.add(this);
    this.#tick();
  }

  get state(): AcceptorState {
    const flushRecordLsn = this.log.recordEnd(this.log.flushed);
    return {
      term: this.#memory.term as Term,
      history: this.#memory.history,
      flushLsn: this.log.flushed as Lsn,
      flushRecordLsn: flushRecordLsn as Lsn,
      lastRecordLsn: this.log.recordStart(flushRecordLsn) as Lsn,
      commitLsn: this.#memory.commitLsn as Lsn,
      damage: this.#memory.damage,
    };
  }
  get damaged(): boolean {
    return this.#durable.damage !== null;
  }

  // ---- life and death

  crash(damage: 'none' | 'lost' | 'rebuilt'): void {
    const { random, checker } = this.#world;
    checker.counts.crashes++;
    this.up = false;
    this.#life++;
    if (this.#pending?.atomic === true && random.chance(0.5)) this.#pending.done();
    this.#pending = null;
    const { log } = this;
    log.truncate(log.recordEnd(random.between(log.flushed, log.end)));
    log.flushed = log.end;
    if (damage !== 'none') checker.counts.damages++;
    if (damage === 'lost') {
      log.truncate(log.recordEnd(random.between(GENESIS_LSN, log.end)));
      const { term } = this.#durable;
      if (this.#durable.damage?.kind !== 'rebuilt')
        this.#durable = { ...this.#durable, damage: { kind: 'lost', term: term as Term, reason: 'simulated' } };
    } else if (damage === 'rebuilt') {
      log.truncate(GENESIS_LSN);
      this.#durable = { ...EMPTY, damage: { kind: 'rebuilt', term: 0 as Term, reason: 'simulated' } };
    }
  }

  restart(): void {
    if (this.up) return;
    this.up = true;
    this.#memory = this.#durable;
    this.#queue = [];
    this.#running = false;
    this.#flushQueued = false;
    this.#stream = null;
    this.#adoption = null;
    this.#peers = new Map();
    this.#world.checker.describes(this.id, this.#memory.history, this.log.records);
    this.#tick();
  }

  #tick(): void {
    this.#after(this.#world.random.between(12, 24), () => {
      const { now } = this.#world.clock;
      const position = positionOf(this.state);
      for (const to of [...MEMBERS, 'reader']) if (to !== this.id) this.#send(to, { kind: 'position', position });
      if (this.#adoption !== null && now - this.#adoption.progressAt > STALL_MS) this.#copyMore();
      if (this.#stream !== null && now - this.#stream.progressAt > STALL_MS) this.#startReplication();
      if (this.#world.random.chance(0.1)) this.#enqueue(this.#writeControl({}));
      this.#tick();
    });
  }

  #after(delay: number, run: () => void): void {
    const life = this.#life;
    this.#world.clock.after(delay, () => {
      if (this.up && this.#life === life) run();
    });
  }
  #send(to: string, message: Message): void {
    this.#world.send(this.id, to, message);
  }

  // ---- operations, one at a time

  #enqueue(operation: Operation): void {
    this.#queue.push(operation);
    if (!this.#running) this.#next();
  }

  #next(): void {
    for (;;) {
      const operation = this.#queue[0];
      this.#running = operation !== undefined;
      if (operation === undefined) return;
      const step = operation.next();
      if (step.done !== true) {
        const write = step.value;
        this.#pending = write;
        const risk = this.#world.writeCrashChance * (write.atomic ? 3 : 1);
        if (this.#world.random.chance(risk)) return this.#after(2, () => this.#world.onWriteCrash(this.id));
        this.#after(this.#world.random.between(0, 5), () => {
          this.#pending = null;
          write.done();
          this.#next();
        });
        return;
      }
      this.#queue.shift();
    }
  }

  *#flush(): Operation {
    const { end } = this.log;
    if (end > this.log.flushed) yield { atomic: false, done: () => void (this.log.flushed = Math.min(end, this.log.end)) };
  }

  *#writeControl(change: Partial<Control>): Operation {
    const next = { ...this.#memory, ...change };
    yield { atomic: true, done: () => void (this.#durable = next) };
    this.#memory = { ...next, commitLsn: Math.max(next.commitLsn, this.#memory.commitLsn) };
    if (change.history !== undefined) this.#world.checker.describes(this.id, change.history, this.log.records);
  }

  *#truncate(to: number): Operation {
    const { checker } = this.#world;
    yield {
      atomic: true,
      done: () => {
        const gone = this.log.truncate(to);
        checker.truncated(this.id, this.log.records.length, gone);
      },
    };
  }

  *#vote(agent: string, attempt: number, term: number): Operation {
    yield* this.#flush();
    const { state } = this;
    const decision = handleVote(this.#world.has('damaged-votes') ? { ...state, damage: null } : state, term as Term);
    if (!decision.granted) return this.#send(agent, { kind: 'refused', attempt, term: decision.term, reason: decision.reason });
    const answer = (): void => {
      const log = this.log.records.slice();
      this.#send(agent, { kind: 'vote', attempt, vote: voteOf({ ...this.state, term: term as Term }, this.id), log });
    };
    if (this.#world.has('grant-without-persist')) answer();
    yield* this.#raiseTerm(term);
    if (!this.#world.has('grant-without-persist')) answer();
  }

  *#raiseTerm(term: number): Operation {
    yield* this.#writeControl({ term });
    if (!this.#world.has('stream-without-term-check')) this.#stream = null;
    this.#adoption = null;
  }

  *#elected(agent: string, attempt: number, request: Elected): Operation {
    yield* this.#flush();
    const plan = planElected(this.state, request, this.id, MEMBERS.length);
    if (plan.kind === 'refused') return this.#send(agent, { kind: 'refused', attempt, term: plan.term, reason: plan.reason });
    this.#adoption = { request, agent, attempt, progressAt: this.#world.clock.now };
    if (plan.kind === 'adopt') {
      const adoption = this.#adoption;
      if (plan.raiseTerm !== null) yield* this.#raiseTerm(plan.raiseTerm);
      this.#adoption = adoption;
      const { bug } = this.#world;
      if (bug === 'history-before-truncation') yield* this.#writeControl({ history: plan.history });
      if (plan.truncateTo !== null && bug !== 'no-truncation') yield* this.#truncate(plan.truncateTo);
      if (bug !== 'history-after-copy') yield* this.#writeControl({ history: plan.history });
      this.#world.checker.counts.copied += plan.copyTo - plan.copyFrom;
    }
    yield* this.#adoptedYet();
  }

  /** Finishes the adoption under way, or asks the donor for more. */
  *#adoptedYet(): Operation {
    const adoption = this.#adoption;
    if (adoption === null) return;
    const { request, agent, attempt } = adoption;
    if (this.state.flushRecordLsn < request.termStartLsn) return this.#copyMore();
    this.#adoption = null;
    if (this.#world.has('history-after-copy')) yield* this.#writeControl({ history: request.termHistory });
    const { damage } = finishElected(this.state, request);
    if (damage !== this.#memory.damage) yield* this.#writeControl({ damage });
    this.#send(agent, { kind: 'adopted', attempt, term: request.term, flushRecordLsn: this.state.flushRecordLsn });
  }

  // oxlint-disable-next-line require-yield -- an operation of the queue that writes to memory only
  *#append(from: number, to: number, records: Parameters<SimLog['append']>[2], allowed: () => boolean, ackTo: string | null): Operation {
    if (!allowed() || from !== this.log.end) return;
    const known = this.log.records.length;
    this.log.append(from, to, records, this.id);
    if (!this.#world.has('history-after-copy')) this.#world.checker.describes(this.id, this.#memory.history, this.log.records, known);
    if (ackTo !== null && this.#world.has('ack-before-fsync')) this.#acknowledge(this.log.end);
    if (this.#flushQueued) return;
    this.#flushQueued = true;
    this.#enqueue(this.#flushAndReport());
  }

  *#flushAndReport(): Operation {
    this.#flushQueued = false;
    yield* this.#flush();
    if (this.#stream !== null) this.#acknowledge(this.log.flushed);
    this.#learnCommit();
    yield* this.#adoptedYet();
  }

  #acknowledge(lsn: number): void {
    if (this.#stream !== null) this.#send(this.#stream.compute, { kind: 'flushed', term: this.#stream.term, lsn });
  }

  // ---- streams and peers

  #startReplication(): void {
    const stream = this.#stream;
    if (stream === null) return;
    stream.session = this.#world.id();
    stream.progressAt = this.#world.clock.now;
    this.#send(stream.compute, { kind: 'startReplication', term: stream.term, session: stream.session, from: this.log.end });
  }

  #copyMore(): void {
    const adoption = this.#adoption;
    if (adoption === null) return;
    adoption.progressAt = this.#world.clock.now;
    const { term, termStartLsn: to, donor } = adoption.request;
    this.#send(donor, { kind: 'copyRequest', term, from: this.log.end, to });
  }

  #learnCommit(): void {
    const { state } = this;
    const positions = [...this.#peers.values()].map((p) => (this.#world.has('count-older-term') ? { ...p, term: p.lastLogTerm } : p));
    let learned = memberCommitLsn(state, positions);
    const quorum = quorumCommit([positionOf(state), ...positions], 2);
    if (this.#world.has('commit-without-log-check')) learned = Math.max(state.commitLsn, Math.min(quorum.lsn, state.flushRecordLsn)) as Lsn;
    if (learned <= state.commitLsn) return;
    this.#world.checker.claim(this.log.records, learned, quorum.term, `${this.id} (commit LSN)`);
    this.#memory = { ...this.#memory, commitLsn: learned };
  }

  receive(from: string, message: Message): void {
    if (!this.up) return;
    switch (message.kind) {
      case 'statusRequest':
        return this.#send(from, { kind: 'status', attempt: message.attempt, term: this.#memory.term, commitLsn: readableLsn(this.state) });
      case 'voteRequest':
        return this.#enqueue(this.#vote(from, message.attempt, message.term));
      case 'elected':
        return this.#enqueue(this.#elected(from, message.attempt, message.request));
      case 'copyRequest':
        return this.#serveCopy(from, message.term, message.from, message.to);
      case 'copyChunk': {
        const allowed = (): boolean =>
          this.#adoption?.request.term === message.term &&
          (mayCopy(this.state, message.term as Term) || this.#world.has('history-after-copy'));
        if (this.#adoption !== null) this.#adoption.progressAt = this.#world.clock.now;
        return this.#enqueue(this.#append(message.from, message.to, message.records, allowed, null));
      }
      case 'subscribe':
        if (!mayStream(this.state, message.term as Term)) return;
        if (this.#stream?.term === message.term && this.#stream.compute === from) return;
        this.#stream = { term: message.term, compute: from, session: 0, progressAt: 0 };
        return this.#startReplication();
      case 'wal': {
        const stream = this.#stream;
        if (stream?.session !== message.session) return;
        if (message.from === this.log.end) stream.progressAt = this.#world.clock.now;
        const allowed = (): boolean =>
          this.#stream === stream && (this.#world.has('stream-without-term-check') || mayStream(this.state, message.term as Term));
        return this.#enqueue(this.#append(message.from, message.to, message.records, allowed, from));
      }
      case 'position':
        this.#peers.set(from, message.position);
        return this.#learnCommit();
      case 'readRequest': {
        const to = this.log.recordEnd(Math.min(readableLsn(this.state), message.from + READ_BYTES_MAX));
        if (to > message.from)
          this.#send(from, { kind: 'readAnswer', from: message.from, to, records: overlapping(this.log.records, message.from, to) });
        return;
      }
    }
  }

  #serveCopy(to: string, term: number, from: number, end: number): void {
    if (!mayServePeer(this.state, term as Term)) return;
    const upTo = Math.min(end, this.log.flushed, from + 8 * this.#world.random.between(1, this.#world.copyBytesMax / 8));
    if (upTo > from) this.#send(to, { kind: 'copyChunk', term, from, to: upTo, records: overlapping(this.log.records, from, upTo) });
  }
}
