/** A simulated safekeeper: the real acceptor functions of wal-quorum on a simulated machine (machine.ts), with the I/O order of docs/protocols/election.md.
 *
 *  A machine that lost its disk, or stands ready, is nobody until a driver makes it a new member. */
import type { Lsn, Term } from '@lakebase/ids';
import {
  type AcceptorState,
  type Configuration,
  type Elected,
  type MemberPosition,
  finishElected,
  firstTermOf,
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
import { GENESIS_LSN, type SimLog, type SimRecord, overlapping } from './log.ts';
import { type Control, Machine, NOBODY, type Operation } from './machine.ts';
import type { MakeMember, Message, NodeStatus, Process } from './messages.ts';
import { FIRST_CONFIGURATION, type World } from './world.ts';

const STALL_MS = 60;
const RETRIES_MAX = 5;
const READ_BYTES_MAX = 400;

export class Member implements Process {
  readonly id: string;
  readonly #world: World;
  readonly #machine: Machine;
  #flushQueued = false;
  #stream: { term: number; generation: number; compute: string; session: number; progressAt: number } | null = null;
  #adoption: { request: Elected; to: number; agent: string | null; attempt: number; progressAt: number; retries: number } | null = null;
  #peers = new Map<string, MemberPosition>();
  /** Where its WAL in the object store ends, as far as known. */
  #offloadedLsn = 0;

  constructor(id: string, world: World) {
    this.id = id;
    this.#world = world;
    this.#machine = new Machine(id, world);
    world.add(this);
    if (FIRST_CONFIGURATION.members.includes(id)) {
      this.#machine.made = [id];
      this.#machine.durable = this.#machine.memory = { ...NOBODY, self: id, configuration: FIRST_CONFIGURATION };
      this.#offloadedLsn = this.log.start;
    }
    this.#tick();
  }

  get up(): boolean {
    return this.#machine.up;
  }
  get log(): SimLog {
    return this.#machine.log;
  }
  /** Who this machine is now; survives whatever its disk survives. */
  get self(): string | null {
    return this.#machine.durable.self;
  }
  get configuration(): Configuration {
    return this.#machine.durable.configuration;
  }

  get state(): AcceptorState {
    return this.#machine.state;
  }
  /** Of the WAL that it holds. */
  get lineage(): number {
    return this.#machine.memory.lineages.at(-1)?.number ?? 0;
  }
  get damaged(): boolean {
    return this.#machine.durable.damage !== null;
  }

  /** Its disk, and every identity ever made on it. */
  get incarnation(): number {
    return this.#machine.incarnation;
  }
  get made(): readonly string[] {
    return this.#machine.made;
  }

  // ---- life and death

  crash(damage: 'none' | 'lost' | 'wiped'): void {
    this.#machine.crash(damage);
  }

  /** The disk of a machine that is down is lost. */
  wipe(): void {
    this.#machine.wipe();
  }

  restart(): void {
    if (this.up) return;
    this.#machine.restart();
    this.#flushQueued = false;
    this.#stream = null;
    this.#adoption = null;
    this.#peers = new Map();
    this.#offloadedLsn = this.log.start;
    this.#world.checker.describes(this.id, this.#machine.memory.history, this.log.records, this.log.inherited);
    this.#tick();
  }

  #tick(): void {
    this.#machine.after(this.#world.random.between(12, 24), () => {
      const { now } = this.#world.clock;
      const { self: member, configuration } = this.#machine.memory;
      if (member !== null) {
        const position = positionOf(this.state);
        const nodes = new Set(votersOf(configuration).map(nodeOf));
        const { lineage } = this;
        this.#world.checker.told(position.flushRecordLsn);
        const told = { kind: 'position', member, position, configuration, lineage, offloadedLsn: this.#offloadedLsn } as const;
        for (const to of [...nodes, 'reader']) if (to !== this.id) this.#send(to, told);
        if (this.#world.putChance > 0) this.#put();
      }
      if (this.#adoption !== null && now - this.#adoption.progressAt > STALL_MS) {
        // A copy from a peer that is gone ends; an agent asks again, with its donor.
        if (this.#adoption.retries++ < RETRIES_MAX) this.#copyMore();
        else this.#adoption = null;
      }
      if (this.#stream !== null && now - this.#stream.progressAt > STALL_MS) this.#startReplication();
      if (this.#world.random.chance(0.1)) this.#machine.enqueue(this.#machine.writeControl({}));
      this.#tick();
    });
  }

  #send(to: string, message: Message): void {
    this.#world.send(this.id, to, message);
  }

  // ---- the object store

  /** Committed WAL only; objects end anywhere. */
  #put(): void {
    const { random, putChance } = this.#world;
    const from = Math.max(this.#offloadedLsn, this.log.start);
    const readable = readableLsn(this.state);
    if (readable <= from || !random.chance(putChance)) return;
    const to = random.chance(0.5) ? readable : random.between(from + 1, readable);
    const { lineage } = this;
    const records = overlapping(this.log.records, from, to);
    this.#send('store', { kind: 'put', lineage, startLsn: this.log.start, from, to, records });
  }

  /** What another lineage has in the store is other WAL. */
  #noteOffloaded(lineage: number, lsn: number): void {
    if (lineage === this.lineage || this.#world.has('offloaded-across-lineages')) this.#offloadedLsn = Math.max(this.#offloadedLsn, lsn);
  }

  // ---- membership

  /** A newer configuration is durable, and what belonged to the older one is over, before anything else is done by it. */
  *#follow(configuration: Configuration): Operation {
    if (this.#machine.memory.self === null) return;
    const decision = handleConfiguration(this.state, configuration);
    if (decision.kind !== 'newer') return;
    yield* this.#machine.flush();
    yield* this.#machine.writeControl({ configuration });
    if (!this.#world.has('stream-across-generations')) this.#stream = null;
    this.#adoption = null;
    this.#learnCommit();
  }

  *#configure(configuration: Configuration, make: MakeMember | null): Operation {
    if (make !== null && this.#machine.memory.self !== make.member) {
      const { self, configuration: own } = this.#machine.memory;
      if (
        make.incarnation !== this.#machine.incarnation ||
        this.#machine.made.includes(make.member) ||
        !votersOf(configuration).includes(make.member)
      )
        return;
      // A late request of an old change must not put an end to a member of a newer configuration.
      if (self !== null && (configuration.generation < own.generation || votersOf(configuration).includes(self))) return;
      const { lineages, before } = make;
      const term = this.#world.has('terms-begin-anew') ? 0 : firstTermOf(lineages);
      const commitLsn = lineages.at(-1)?.startLsn ?? GENESIS_LSN;
      yield* this.#become({ ...NOBODY, self: make.member, configuration, lineages, term, commitLsn }, before);
      this.#world.checker.configured(configuration, this.id);
      return;
    }
    yield* this.#follow(configuration);
  }

  *#become(control: Control, before: readonly SimRecord[]): Operation {
    this.#stream = null;
    this.#adoption = null;
    yield* this.#machine.become(control, before);
    this.#peers = new Map();
    this.#offloadedLsn = this.log.start;
  }

  #nodeStatus(): NodeStatus {
    const { self: member, configuration } = this.#machine.memory;
    const { state } = this;
    const report = { ...positionOf(state), damaged: state.damage !== null };
    const common = { incarnation: this.#machine.incarnation, made: [...this.#machine.made], member };
    if (member === null) return { ...common, configuration: null, position: null, holding: null, commitLsn: 0 };
    const { term, history, flushLsn } = state;
    const holding = { damaged: report.damaged, term, historyEntries: history.length, startLsn: this.log.start as Lsn, flushLsn };
    return { ...common, configuration, position: report, holding, commitLsn: readableLsn(state) };
  }

  // ---- election

  *#vote(agent: string, attempt: number, term: number, wanted: Configuration): Operation {
    yield* this.#follow(wanted);
    if (this.#machine.memory.self === null) return;
    yield* this.#machine.flush();
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
    yield* this.#machine.writeControl({ term });
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
    if (this.#machine.memory.self === null) return;
    yield* this.#machine.flush();
    const lax = agent === null || this.#world.has('vote-ignores-generation');
    const request = lax ? { ...wanted, configuration: this.#machine.memory.configuration } : wanted;
    const plan = planElected(this.state, request);
    if (plan.kind === 'refused') return this.#refuse(agent, attempt, plan);
    this.#adoption = { request, to: Math.max(end, wanted.termStartLsn), agent, attempt, progressAt: this.#world.clock.now, retries: 0 };
    if (plan.kind === 'adopt') {
      const adoption = this.#adoption;
      if (plan.raiseTerm !== null) yield* this.#raiseTerm(plan.raiseTerm);
      this.#adoption = adoption;
      const { bug } = this.#world;
      if (bug === 'history-before-truncation') yield* this.#machine.writeControl({ history: plan.history });
      if (plan.truncateTo !== null && bug !== 'no-truncation') yield* this.#machine.truncate(plan.truncateTo);
      if (bug !== 'history-after-copy') yield* this.#machine.writeControl({ history: plan.history });
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
    if (this.#world.has('history-after-copy')) yield* this.#machine.writeControl({ history: request.termHistory });
    const { damage } = finishElected(this.state, request);
    if (damage !== this.#machine.memory.damage) yield* this.#machine.writeControl({ damage });
    const { self: member, flushRecordLsn } = this.state;
    if (agent !== null) this.#send(agent, { kind: 'adopted', attempt, member, term: request.term, flushRecordLsn });
  }

  // oxlint-disable-next-line require-yield -- an operation of the queue that writes to memory only
  *#append(from: number, to: number, records: Parameters<SimLog['append']>[2], allowed: () => boolean, ackTo: string | null): Operation {
    if (!allowed() || from !== this.log.end) return;
    const known = this.log.records.length;
    this.log.append(from, to, records, this.id);
    if (!this.#world.has('history-after-copy'))
      this.#world.checker.describes(this.id, this.#machine.memory.history, this.log.records, known);
    if (ackTo !== null && this.#world.has('ack-before-fsync')) this.#acknowledge(this.log.end);
    if (this.#flushQueued) return;
    this.#flushQueued = true;
    this.#machine.enqueue(this.#flushAndReport());
  }

  *#flushAndReport(): Operation {
    this.#flushQueued = false;
    yield* this.#machine.flush();
    if (this.#stream !== null) this.#acknowledge(this.log.flushed);
    this.#learnCommit();
    yield* this.#adoptedYet();
  }

  #acknowledge(lsn: number): void {
    if (this.#stream === null) return;
    const { compute, term, generation } = this.#stream;
    this.#world.checker.told(lsn);
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
    this.#send(nodeOf(donor), { kind: 'copyRequest', lineage: this.lineage, term, from: this.log.end, to: adoption.to });
  }

  #learnCommit(): void {
    const { state } = this;
    if (this.#machine.memory.self === null) return;
    const positions = new Map([...this.#peers].map(([id, p]) => [id, this.#world.seen(p, state.configuration)] as const));
    const configuration = this.#world.counted(state.configuration);
    let learned = memberCommitLsn({ ...state, configuration }, positions);
    const quorum = quorumCommit(new Map(positions).set(state.self, positionOf(state)), configuration);
    if (this.#world.has('commit-without-log-check')) learned = Math.max(state.commitLsn, Math.min(quorum.lsn, state.flushRecordLsn)) as Lsn;
    if (learned <= state.commitLsn) return;
    this.#world.checker.claim(this.log.records, learned, quorum.term, `${this.id} (commit LSN)`);
    this.#machine.memory = { ...this.#machine.memory, commitLsn: learned };
  }

  receive(from: string, message: Message): void {
    if (!this.up) return;
    if (message.kind === 'nodeRequest')
      return this.#send(from, { kind: 'nodeStatus', askedAt: message.askedAt, status: this.#nodeStatus() });
    if (message.kind === 'configure') return this.#machine.enqueue(this.#configure(message.configuration, message.make));
    const { self: member, configuration } = this.#machine.memory;
    if (member === null) return;
    switch (message.kind) {
      case 'statusRequest': {
        const { attempt } = message;
        const { term } = this.#machine.memory;
        return this.#send(from, { kind: 'status', attempt, member, term, commitLsn: readableLsn(this.state), configuration });
      }
      case 'retire':
        if (message.member === member) this.#machine.enqueue(this.#retire(member));
        return;
      case 'catchUp':
        if (this.#stream === null && this.#adoption === null) this.#send(message.donor, { kind: 'termRequest' });
        return;
      case 'termRequest':
        return this.#answerTerm(from);
      case 'termAnswer':
        if (this.#stream !== null || this.#adoption !== null || message.end <= this.log.flushed) return;
        return this.#machine.enqueue(this.#elected(null, 0, { ...message.request, configuration }, message.end));
      case 'voteRequest':
        return this.#machine.enqueue(this.#vote(from, message.attempt, message.term, message.configuration));
      case 'elected':
        return this.#machine.enqueue(this.#elected(from, message.attempt, message.request));
      case 'copyRequest':
        if (message.lineage !== this.lineage) return;
        return this.#serveCopy(from, message.term, message.from, message.to);
      case 'copyChunk': {
        const allowed = (): boolean =>
          this.#adoption?.request.term === message.term &&
          (mayCopy(this.state, message.term as Term) || this.#world.has('history-after-copy'));
        if (this.#adoption !== null) {
          this.#adoption.progressAt = this.#world.clock.now;
          this.#adoption.retries = 0;
        }
        return this.#machine.enqueue(this.#append(message.from, message.to, message.records, allowed, null));
      }
      case 'subscribe':
        return this.#machine.enqueue(this.#subscribe(from, message.term, message.configuration));
      case 'wal': {
        const stream = this.#stream;
        if (stream?.session !== message.session) return;
        if (message.from === this.log.end) stream.progressAt = this.#world.clock.now;
        const allowed = (): boolean =>
          this.#stream === stream && (this.#world.has('stream-without-term-check') || this.#mayStream(stream.term, stream.generation));
        return this.#machine.enqueue(this.#append(message.from, message.to, message.records, allowed, from));
      }
      case 'position':
        this.#peers.set(message.member, message.position);
        this.#noteOffloaded(message.lineage, message.offloadedLsn);
        return this.#learnCommit();
      case 'stored':
        return this.#noteOffloaded(message.lineage, message.end);
      case 'readRequest': {
        if (message.lineage !== this.lineage && !this.#world.has('pages-of-any-lineage')) return;
        const to = this.log.recordEnd(Math.min(readableLsn(this.state), message.from + READ_BYTES_MAX));
        if (to > message.from)
          this.#send(from, {
            kind: 'readAnswer',
            lineage: message.lineage,
            from: message.from,
            to,
            records: overlapping(this.log.records, message.from, to),
          });
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
    if (this.#machine.memory.self === null) return;
    const { configuration } = this.#machine.memory;
    const { generation } = wanted;
    if (configuration.generation > generation) this.#send(compute, { kind: 'newerConfiguration', configuration });
    if (!this.#mayStream(term, generation)) return;
    if (this.#stream?.term === term && this.#stream.generation === generation && this.#stream.compute === compute) return;
    this.#stream = { term, generation, compute, session: 0, progressAt: 0 };
    this.#startReplication();
  }

  *#retire(member: string): Operation {
    if (this.#machine.memory.self === member) yield* this.#become(NOBODY, []);
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
