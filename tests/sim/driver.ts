/** A simulated driver of membership changes and recoveries: what the Manager does (docs/protocols/membership.md, wal-recovery.md). It remembers nothing but its orders: every round starts from
 *  the register and from what the nodes say, so it may die at any step, and two of them may work at once. */
import type { Lsn } from '@lakebase/ids';
import {
  type Configuration,
  type MemberReport,
  type MemberState,
  abortReplacement,
  beginReplacement,
  finishProblem,
  finishReplacement,
  firstTermOf,
  majorityOf,
  memberAhead,
  memberIdOf,
  nodeOf,
  recoveredConfiguration,
  recoveredMembers,
  recoveryVerdict,
  stateOfHolding,
  votersOf,
} from '@lakebase/wal-quorum';
import { GENESIS_LSN } from './log.ts';
import type { Message, NodeStatus, Process, RegisterValue } from './messages.ts';
import type { Reader } from './reader.ts';
import { NODES, type World } from './world.ts';

/** Compute hosts that are asked to end what they run. */
const COMPUTES = ['compute1', 'compute2', 'compute3'];
/** Who has not answered for this long does not answer. */
const SILENT_MS = 60;

interface Recovery {
  readonly generation: number;
  readonly unasked: boolean;
  /** What was seen of the members when it began. */
  readonly states: ReadonlyMap<string, MemberState>;
  readonly commitLsns: ReadonlyMap<string, number>;
}

export class Driver implements Process {
  readonly id: string;
  readonly #world: World;
  readonly #pages: () => Reader;
  /** What the pageserver is told is read and told in one go. */
  readonly #truth: () => RegisterValue;
  #life = 0;
  #up = true;
  #value: RegisterValue | null = null;
  /** What the members told some rounds ago, under the same configuration. */
  #earlier: { generation: number; reports: ReadonlyMap<string, MemberReport> } | null = null;
  readonly #nodes = new Map<string, NodeStatus>();
  /** When each node was asked for what is known of it. */
  readonly #asked = new Map<string, number>();
  /** Since when it knows that too few members of that generation are left. */
  #short: { readonly generation: number; readonly since: number } | null = null;
  /** Replace any one member, without a reason. */
  ordered = false;
  /** Generation of the configuration whose loss a person has accepted. */
  lossAccepted: number | null = null;
  /** A recovery that waits for what the object store has. */
  #recovery: Recovery | null = null;
  /** Chance per round to give up a change under way. */
  abortChance = 0;

  constructor(id: string, world: World, pages: () => Reader, truth: () => RegisterValue) {
    this.id = id;
    this.#world = world;
    this.#pages = pages;
    this.#truth = truth;
    world.add(this);
    this.#tick();
  }

  stop(): void {
    this.#life++;
    this.#up = false;
    this.#value = null;
    this.#nodes.clear();
    this.#earlier = null;
    this.#recovery = null;
    this.#short = null;
    this.ordered = false;
  }

  start(): void {
    if (this.#up) return;
    this.#up = true;
    this.#tick();
  }

  #tick(): void {
    const life = this.#life;
    this.#world.clock.after(this.#world.random.between(15, 45), () => {
      if (life !== this.#life) return;
      this.#send('register', { kind: 'registerRead' });
      for (const node of NODES) this.#send(node, { kind: 'nodeRequest', askedAt: this.#world.clock.now });
      if (this.#value !== null) this.#round(this.#value);
      this.#tick();
    });
  }

  receive(from: string, message: Message): void {
    if (!this.#up) return;
    if (message.kind === 'nodeStatus') {
      this.#nodes.set(from, message.status);
      this.#asked.set(from, message.askedAt);
    } else if (message.kind === 'archiveEnd') this.#recover(message);
    else if (message.kind === 'registerValue') {
      const known = this.#value?.configuration.generation ?? 0;
      if (message.value.configuration.generation >= known || this.#world.has('no-compare-and-swap')) this.#value = message.value;
    }
  }

  /** What is known of a member, if its node still is that member. */
  #statusOf(member: string): NodeStatus | undefined {
    const status = this.#nodes.get(nodeOf(member));
    return status?.member === member ? status : undefined;
  }

  /** Its node says that it cannot be that member any more. */
  #isLost(member: string, value: RegisterValue): boolean {
    const status = this.#nodes.get(nodeOf(member));
    if (status === undefined || status.member === member) return false;
    return status.incarnation !== value.incarnations[member] || status.made.includes(member);
  }

  #round(value: RegisterValue): void {
    const { configuration } = value;
    this.#push(value);
    if (this.#world.putChance > 0 && this.#world.random.chance(0.3)) this.#pages().follow(this.#truth().lineages);
    const left = configuration.members.filter((id) => !this.#isLost(id, value));
    if (left.length < majorityOf(configuration.members) && this.#world.putChance > 0) this.#beginRecovery(value);
    if (configuration.newMembers !== null) this.#finish(value, configuration.newMembers);
    else {
      this.#retire(configuration);
      if (left.length >= majorityOf(configuration.members) || this.#world.putChance === 0) this.#begin(value);
    }
  }

  /** Tells every member; makes the ones that are not there yet. */
  #push({ configuration, incarnations, lineages, before }: RegisterValue): void {
    const { random, leavingChance } = this.#world;
    for (const member of votersOf(configuration)) {
      if (configuration.newMembers?.includes(member) === false && !random.chance(leavingChance)) continue;
      const status = this.#nodes.get(nodeOf(member));
      if (status === undefined) continue;
      if (status.member === member && (status.configuration?.generation ?? 0) >= configuration.generation) continue;
      const make = { member, incarnation: incarnations[member] ?? 0, lineages, before };
      this.#send(nodeOf(member), { kind: 'configure', configuration, make });
    }
  }

  #finish(value: RegisterValue, newMembers: readonly string[]): void {
    const { random } = this.#world;
    const { configuration } = value;
    const joining = newMembers.filter((id) => !configuration.members.includes(id));
    if (joining.some((id) => this.#isLost(id, value)) || random.chance(this.abortChance))
      return this.#swap(value, abortReplacement(configuration), {});
    for (const member of newMembers) {
      const donors = votersOf(configuration).filter((id) => id !== member && this.#statusOf(id) !== undefined);
      if (donors.length > 0 && random.chance(0.5)) this.#send(nodeOf(member), { kind: 'catchUp', donor: nodeOf(random.pick(donors)) });
    }
    if (this.#mayFinish(configuration, newMembers)) this.#swap(value, finishReplacement(configuration), {});
  }

  #mayFinish(configuration: Configuration, newMembers: readonly string[]): boolean {
    const reports = new Map(
      votersOf(configuration).flatMap((id) => {
        const position = this.#statusOf(id)?.position ?? null;
        return position === null ? [] : [[id, position] as const];
      }),
    );
    if (this.#world.has('finish-without-catching-up')) {
      const held = configuration.members.filter((id) => (reports.get(id)?.generation ?? 0) >= configuration.generation);
      return held.length >= majorityOf(configuration.members) && newMembers.every((id) => reports.has(id));
    }
    if (this.#world.has('finish-without-old-majority'))
      for (const [id, position] of reports) reports.set(id, { ...position, generation: configuration.generation });
    if (this.#world.has('damaged-witness')) for (const [id, position] of reports) reports.set(id, { ...position, damaged: false });
    if (this.#world.has('finish-without-terms'))
      for (const [id, position] of reports) reports.set(id, { ...position, term: position.lastLogTerm });
    if (this.#earlier?.generation !== configuration.generation || this.#world.random.chance(0.3))
      this.#earlier = { generation: configuration.generation, reports };
    return finishProblem(configuration, reports, this.#earlier.reports) === null;
  }

  #begin(value: RegisterValue): void {
    const { random } = this.#world;
    const { configuration } = value;
    const lost = configuration.members.filter((id) => this.#isLost(id, value));
    if (lost.length === 0 && !this.ordered) return;
    const voters = votersOf(configuration);
    const leaving = lost.length > 0 ? random.pick(lost) : random.pick(voters);
    // A member of a recovery that is not made yet must be, before another one can take its place on its node.
    const mayReturn = lost.length > 0 || value.lineages.length === 1;
    const free = NODES.filter((node) => {
      const status = this.#nodes.get(node);
      return status !== undefined && (status.member === null || !voters.includes(status.member));
    }).filter((node) => voters.every((id) => (id === leaving && mayReturn) || nodeOf(id) !== node));
    if (free.length === 0) return;
    const node = random.pick(free);
    const incarnation = this.#nodes.get(node)?.incarnation ?? 0;
    const joining = memberIdOf(node, configuration.generation + 1);
    this.ordered = false;
    let next = beginReplacement(configuration, leaving, joining);
    if (this.#world.has('no-joint') && next.newMembers !== null) next = { ...next, members: next.newMembers, newMembers: null };
    this.#swap(value, next, { [joining]: incarnation });
  }

  /** Nodes whose member has no place any more: their data may go. */
  #retire(configuration: Configuration): void {
    for (const [node, { member }] of this.#nodes)
      if (member !== null && !configuration.members.includes(member)) {
        const named = /_g(\d+)$/.exec(member)?.[1];
        // One that a newer configuration, which is not known here yet, may have made.
        const due = this.#world.random.chance(this.#world.leavingChance);
        if (due && Number(named ?? 0) <= configuration.generation) this.#send(node, { kind: 'retire', member });
      }
  }

  // ---- recovery

  #stateOf(member: string, value: RegisterValue): MemberState {
    const node = nodeOf(member);
    const status = this.#nodes.get(node);
    if (status === undefined || (this.#asked.get(node) ?? 0) < (this.#short?.since ?? 0))
      return this.#world.has('silent-is-lost') ? 'disk lost' : 'silent';
    if (status.member === member && status.holding !== null) return stateOfHolding(status.holding, firstTermOf(value.lineages));
    return status.made.includes(member) ? 'data lost' : 'disk lost';
  }

  /** Too few are left: computes are stopped and ingest is sealed before anybody looks how far the WAL goes. */
  #beginRecovery(value: RegisterValue): void {
    const { random } = this.#world;
    const { configuration, lineages } = value;
    const { generation } = configuration;
    const { now } = this.#world.clock;
    if (this.#short?.generation !== generation) this.#short = { generation, since: now };
    // What a node told before the loss was known says nothing: a member that had nothing then may have acknowledged WAL with one that is lost now.
    if (now - this.#short.since < SILENT_MS) return;
    const states = new Map(votersOf(configuration).map((id) => [id, this.#stateOf(id, value)] as const));
    const verdict = recoveryVerdict(configuration, states);
    const unasked = this.#world.has('recovers-when-most-are-lost') ? verdict.refusal === null : verdict.unasked;
    if ((!unasked && this.lossAccepted !== generation) || verdict.refusal !== null) return;
    for (const compute of COMPUTES) this.#send(compute, { kind: 'stopCompute' });
    if (random.chance(0.1)) return;
    if (!this.#world.has('recovers-without-sealing') && !this.#pages().seal(generation + 1)) return;
    const commitLsns = new Map([...states.keys()].map((id) => [id, this.#statusOf(id)?.commitLsn ?? 0] as const));
    this.#recovery = { generation, unasked, states, commitLsns };
    const before = this.#world.has('recovers-behind-the-pages') ? [] : this.#pages().pages;
    this.#send('store', { kind: 'archiveEndRequest', generation, lineages, before });
  }

  #recover({ generation, whole }: Extract<Message, { kind: 'archiveEnd' }>): void {
    const [value, recovery] = [this.#value, this.#recovery];
    if (value === null || recovery === null || recovery.generation !== generation || value.configuration.generation !== generation) return;
    this.#recovery = null;
    const { configuration } = value;
    const startLsn = (whole.at(-1)?.end ?? GENESIS_LSN) as Lsn;
    const sights = [...recovery.states].map(([id, state]) => ({
      state,
      commitLsn: (recovery.commitLsns.get(id) ?? null) as Lsn | null,
      offloads: true,
    }));
    if (memberAhead(sights, startLsn) !== undefined) return;
    const members = recoveredMembers(configuration, recovery.states, NODES);
    const incarnations = members.map(({ id, absent }) => [id, absent ? 0 : (this.#nodes.get(nodeOf(id))?.incarnation ?? 0)] as const);
    const lineages = [...value.lineages, { number: generation + 1, startLsn }];
    const next = { ...value, lineages, before: whole, unasked: recovery.unasked };
    this.#swap(next, recoveredConfiguration(configuration, members), Object.fromEntries(incarnations));
  }

  #swap(value: RegisterValue, configuration: Configuration, more: Readonly<Record<string, number>>): void {
    const { generation } = value.configuration;
    this.#world.note(() => `${this.id} proposes ${JSON.stringify(configuration)}`);
    const incarnations = { ...value.incarnations, ...more };
    this.#send('register', { kind: 'registerSwap', generation, value: { ...value, configuration, incarnations } });
  }

  #send(to: string, message: Message): void {
    this.#world.send(this.id, to, message);
  }
}
