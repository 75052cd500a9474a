/** A simulated safekeeper machine: the real acceptor functions of wal-quorum, with the I/O order of docs/protocols/election.md done on a simulated disk.
 *
 *  Operations are generators run one at a time; each `yield` is a disk write, and a crash may come during any of them: an atomic write (rename, truncate) is then
 *  done or not done, unsynced bytes survive as a random prefix. Nothing in memory survives.
 *
 *  Who the machine is as a member is on its disk. A machine that lost its disk, or stands ready, is nobody until a driver makes it a new member. */
import type { Lsn, Term } from '@lakebase/ids';
import {
  type AcceptorState,
  type Configuration,
  type Damage,
  type Elected,
  type MemberPosition,
  type TermHistory,
  finishElected,
  handleConfiguration,
  handleVote,
  mayCopy,
  mayServePeer,
  mayStream,
  memberCommitLsn,
  nodeOf,
  planElected,
  positionOf,
  quorumCommit,
  readableLsn,
  voteOf,
  votersOf,
} from '@lakebase/wal-quorum';
import { GENESIS_LSN, SimLog, overlapping } from './log.ts';
import type { Message, NodeStatus, Process } from './messages.ts';
import { FIRST_CONFIGURATION, type World } from './world.ts';

interface Control {
  /** null: nobody's. */
  readonly self: string | null;
  readonly configuration: Configuration;
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

const NOBODY: Control = {
  self: null,
  configuration: { generation: 0, members: ['-'], newMembers: null },
  term: 0,
  history: [],
  commitLsn: GENESIS_LSN,
  damage: null,
};
const STALL_MS = 60;
const RETRIES_MAX = 5;
const READ_BYTES_MAX = 400;

export class Member implements Process {
  readonly id: string;
  readonly #world: World;
  readonly log = new SimLog();
  up = true;
  #durable: Control = NOBODY;
  #memory: Control = NOBODY;
  /** Grows when the disk is lost; with it goes the list of who this disk ever was. */
  #incarnation = 1;
  #made: string[] = [];
  /** Counts restarts: callbacks of an earlier life do nothing. */
  #life = 0;
  #queue: Operation[] = [];
  #running = false;
  #pending: DiskWrite | null = null;
  #flushQueued = false;
  #stream: { term: number; generation: number; compute: string; session: number; progressAt: number } | null = null;
  #adoption: { request: Elected; to: number; agent: string | null; attempt: number; progressAt: number; retries: number } | null = null;
  #peers = new Map<string, MemberPosition>();

  constructor(id: string, world: World) {
    this.id = id;
    this.#world = world;
    world.add(this);
    if (FIRST_CONFIGURATION.members.includes(id)) {
      this.#made = [id];
      this.#durable = this.#memory = { ...NOBODY, self: id, configuration: FIRST_CONFIGURATION };
    }
    this.#tick();
  }

  /** Who this machine is now; survives whatever its disk survives. */
  get self(): string | null {
    return this.#durable.self;
  }
  get configuration(): Configuration {
    return this.#durable.configuration;
  }

  get state(): AcceptorState {
    const flushRecordLsn = this.log.recordEnd(this.log.flushed);
    return {
      self: this.#memory.self ?? '-',
      configuration: this.#memory.configuration,
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

  crash(damage: 'none' | 'lost' | 'wiped'): void {
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
    if (damage === 'lost' && this.#durable.self !== null) {
      log.truncate(log.recordEnd(random.between(GENESIS_LSN, log.end)));
      const { term } = this.#durable;
      this.#durable = { ...this.#durable, damage: { kind: 'lost', term: term as Term, reason: 'simulated' } };
    } else if (damage === 'wiped') {
      checker.counts.wipes++;
      log.truncate(GENESIS_LSN);
      const { self, configuration } = this.#durable;
      this.#durable = this.#world.has('lost-votes-under-old-identity') ? { ...NOBODY, self, configuration } : NOBODY;
      this.#incarnation++;
      this.#made = [];
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
      const { self: member, configuration } = this.#memory;
      if (member !== null) {
        const position = positionOf(this.state);
        const nodes = new Set(votersOf(configuration).map(nodeOf));
        for (const to of [...nodes, 'reader']) if (to !== this.id) this.#send(to, { kind: 'position', member, position, configuration });
      }
      if (this.#adoption !== null && now - this.#adoption.progressAt > STALL_MS) {
        // A copy from a peer that is gone ends; an agent asks again, with its donor.
        if (this.#adoption.retries++ < RETRIES_MAX) this.#copyMore();
        else this.#adoption = null;
      }
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
    if (change.configuration !== undefined) this.#world.checker.configured(change.configuration, this.id);
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

  // ---- membership

  /** A newer configuration is durable, and what belonged to the older one is over, before anything else is done by it. */
  *#follow(configuration: Configuration): Operation {
    if (this.#memory.self === null) return;
    const decision = handleConfiguration(this.state, configuration);
    if (decision.kind !== 'newer') return;
    yield* this.#flush();
    yield* this.#writeControl({ configuration });
    if (!this.#world.has('stream-across-generations')) this.#stream = null;
    this.#adoption = null;
    this.#learnCommit();
  }

  *#configure(configuration: Configuration, make: { member: string; incarnation: number } | null): Operation {
    if (make !== null && this.#memory.self !== make.member) {
      const { self, configuration: own } = this.#memory;
      if (make.incarnation !== this.#incarnation || this.#made.includes(make.member) || !votersOf(configuration).includes(make.member))
        return;
      // A late request of an old change must not put an end to a member of a newer configuration.
      if (self !== null && (configuration.generation < own.generation || votersOf(configuration).includes(self))) return;
      yield* this.#become({ ...NOBODY, self: make.member, configuration });
      this.#world.checker.configured(configuration, this.id);
      return;
    }
    yield* this.#follow(configuration);
  }

  *#become(control: Control): Operation {
    this.#stream = null;
    this.#adoption = null;
    yield {
      atomic: true,
      done: () => {
        this.log.truncate(GENESIS_LSN);
        this.#durable = control;
        if (control.self !== null) this.#made.push(control.self);
      },
    };
    this.#memory = control;
    this.#peers = new Map();
  }

  #nodeStatus(): NodeStatus {
    const { self: member, configuration } = this.#memory;
    const { state } = this;
    const report = { ...positionOf(state), damaged: state.damage !== null };
    const common = { incarnation: this.#incarnation, made: [...this.#made], member };
    return { ...common, configuration: member === null ? null : configuration, position: member === null ? null : report };
  }

  // ---- election

  *#vote(agent: string, attempt: number, term: number, wanted: Configuration): Operation {
    yield* this.#follow(wanted);
    if (this.#memory.self === null) return;
    yield* this.#flush();
    const { state } = this;
    const configuration = this.#world.has('vote-ignores-generation') ? state.configuration : wanted;
    const decision = handleVote(this.#world.has('damaged-votes') ? { ...state, damage: null } : state, term as Term, configuration);
    if (!decision.granted) return this.#refuse(agent, attempt, decision);
    const answer = (): void => {
      const log = this.log.records.slice();
      this.#send(agent, { kind: 'vote', attempt, vote: voteOf({ ...this.state, term: term as Term }), log });
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

  #refuse(agent: string | null, attempt: number, no: { term: number; reason: string; configuration?: Configuration }): void {
    const { term, reason, configuration } = no;
    if (agent !== null) this.#send(agent, { kind: 'refused', attempt, member: this.state.self, term, reason, configuration });
  }

  /** `end`: copy on to there once the term is adopted. */
  *#elected(agent: string | null, attempt: number, wanted: Elected, end: number = wanted.termStartLsn): Operation {
    yield* this.#follow(wanted.configuration);
    if (this.#memory.self === null) return;
    yield* this.#flush();
    const lax = agent === null || this.#world.has('vote-ignores-generation');
    const request = lax ? { ...wanted, configuration: this.#memory.configuration } : wanted;
    const plan = planElected(this.state, request);
    if (plan.kind === 'refused') return this.#refuse(agent, attempt, plan);
    this.#adoption = { request, to: Math.max(end, wanted.termStartLsn), agent, attempt, progressAt: this.#world.clock.now, retries: 0 };
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
    if (this.state.flushRecordLsn < adoption.to) return this.#copyMore();
    this.#adoption = null;
    if (this.#world.has('history-after-copy')) yield* this.#writeControl({ history: request.termHistory });
    const { damage } = finishElected(this.state, request);
    if (damage !== this.#memory.damage) yield* this.#writeControl({ damage });
    const { self: member, flushRecordLsn } = this.state;
    if (agent !== null) this.#send(agent, { kind: 'adopted', attempt, member, term: request.term, flushRecordLsn });
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
    if (this.#stream === null) return;
    const { compute, term, generation } = this.#stream;
    this.#send(compute, { kind: 'flushed', member: this.state.self, term, generation, lsn });
  }

  // ---- streams and peers

  #startReplication(): void {
    const stream = this.#stream;
    if (stream === null) return;
    stream.session = this.#world.id();
    stream.progressAt = this.#world.clock.now;
    const { compute, term, generation, session } = stream;
    this.#send(compute, { kind: 'startReplication', member: this.state.self, term, generation, session, from: this.log.end });
  }

  #copyMore(): void {
    const adoption = this.#adoption;
    if (adoption === null) return;
    adoption.progressAt = this.#world.clock.now;
    const { term, donor } = adoption.request;
    this.#send(nodeOf(donor), { kind: 'copyRequest', term, from: this.log.end, to: adoption.to });
  }

  #learnCommit(): void {
    const { state } = this;
    if (this.#memory.self === null) return;
    const positions = new Map([...this.#peers].map(([id, p]) => [id, this.#world.seen(p, state.configuration)] as const));
    const configuration = this.#world.counted(state.configuration);
    let learned = memberCommitLsn({ ...state, configuration }, positions);
    const quorum = quorumCommit(new Map(positions).set(state.self, positionOf(state)), configuration);
    if (this.#world.has('commit-without-log-check')) learned = Math.max(state.commitLsn, Math.min(quorum.lsn, state.flushRecordLsn)) as Lsn;
    if (learned <= state.commitLsn) return;
    this.#world.checker.claim(this.log.records, learned, quorum.term, `${this.id} (commit LSN)`);
    this.#memory = { ...this.#memory, commitLsn: learned };
  }

  receive(from: string, message: Message): void {
    if (!this.up) return;
    if (message.kind === 'nodeRequest') return this.#send(from, { kind: 'nodeStatus', status: this.#nodeStatus() });
    if (message.kind === 'configure') return this.#enqueue(this.#configure(message.configuration, message.make));
    const { self: member, configuration } = this.#memory;
    if (member === null) return;
    switch (message.kind) {
      case 'statusRequest': {
        const { attempt } = message;
        const { term } = this.#memory;
        return this.#send(from, { kind: 'status', attempt, member, term, commitLsn: readableLsn(this.state), configuration });
      }
      case 'retire':
        if (message.member === member) this.#enqueue(this.#retire(member));
        return;
      case 'catchUp':
        if (this.#stream === null && this.#adoption === null) this.#send(message.donor, { kind: 'termRequest' });
        return;
      case 'termRequest':
        return this.#answerTerm(from);
      case 'termAnswer':
        if (this.#stream !== null || this.#adoption !== null || message.end <= this.log.flushed) return;
        return this.#enqueue(this.#elected(null, 0, { ...message.request, configuration }, message.end));
      case 'voteRequest':
        return this.#enqueue(this.#vote(from, message.attempt, message.term, message.configuration));
      case 'elected':
        return this.#enqueue(this.#elected(from, message.attempt, message.request));
      case 'copyRequest':
        return this.#serveCopy(from, message.term, message.from, message.to);
      case 'copyChunk': {
        const allowed = (): boolean =>
          this.#adoption?.request.term === message.term &&
          (mayCopy(this.state, message.term as Term) || this.#world.has('history-after-copy'));
        if (this.#adoption !== null) {
          this.#adoption.progressAt = this.#world.clock.now;
          this.#adoption.retries = 0;
        }
        return this.#enqueue(this.#append(message.from, message.to, message.records, allowed, null));
      }
      case 'subscribe':
        return this.#enqueue(this.#subscribe(from, message.term, message.configuration));
      case 'wal': {
        const stream = this.#stream;
        if (stream?.session !== message.session) return;
        if (message.from === this.log.end) stream.progressAt = this.#world.clock.now;
        const allowed = (): boolean =>
          this.#stream === stream && (this.#world.has('stream-without-term-check') || this.#mayStream(stream.term, stream.generation));
        return this.#enqueue(this.#append(message.from, message.to, message.records, allowed, from));
      }
      case 'position':
        this.#peers.set(message.member, message.position);
        return this.#learnCommit();
      case 'readRequest': {
        const to = this.log.recordEnd(Math.min(readableLsn(this.state), message.from + READ_BYTES_MAX));
        if (to > message.from)
          this.#send(from, { kind: 'readAnswer', from: message.from, to, records: overlapping(this.log.records, message.from, to) });
        return;
      }
    }
  }

  #mayStream(term: number, generation: number): boolean {
    const lax = this.#world.has('stream-across-generations');
    return mayStream(this.state, term as Term, lax ? this.state.configuration.generation : generation);
  }

  *#subscribe(compute: string, term: number, wanted: Configuration): Operation {
    yield* this.#follow(wanted);
    if (this.#memory.self === null) return;
    const { configuration } = this.#memory;
    const { generation } = wanted;
    if (configuration.generation > generation) this.#send(compute, { kind: 'newerConfiguration', configuration });
    if (!this.#mayStream(term, generation)) return;
    if (this.#stream?.term === term && this.#stream.generation === generation && this.#stream.compute === compute) return;
    this.#stream = { term, generation, compute, session: 0, progressAt: 0 };
    this.#startReplication();
  }

  *#retire(member: string): Operation {
    if (this.#memory.self === member) yield* this.#become(NOBODY);
  }

  #answerTerm(to: string): void {
    const { state } = this;
    const last = state.history.at(-1);
    if (last === undefined || last.term !== state.term || state.flushRecordLsn < last.startLsn) return;
    const { term, startLsn: termStartLsn } = last;
    const { self, configuration, history: termHistory, lastRecordLsn, flushRecordLsn: end } = state;
    const request = { term, termStartLsn, lastRecordLsn, termHistory, configuration, donor: self, voters: [] };
    this.#send(to, { kind: 'termAnswer', request, end });
  }

  #serveCopy(to: string, term: number, from: number, end: number): void {
    if (!mayServePeer(this.state, term as Term)) return;
    // Small pieces make long copies; a whole log is not to take for ever.
    const piece = Math.max(8 * this.#world.random.between(1, this.#world.copyBytesMax / 8), 8 * Math.floor((end - from) / 160));
    const upTo = Math.min(end, this.log.flushed, from + piece);
    if (upTo > from) this.#send(to, { kind: 'copyChunk', term, from, to: upTo, records: overlapping(this.log.records, from, upTo) });
  }
}
