/** A simulated driver of membership changes: what the Manager does (docs/protocols/membership.md). It remembers nothing but its orders: every round starts from
 *  the register and from what the nodes say, so it may die at any step, and two of them may work at once. */
import {
  type Configuration,
  type MemberReport,
  abortReplacement,
  beginReplacement,
  finishProblem,
  finishReplacement,
  majorityOf,
  memberIdOf,
  nodeOf,
  votersOf,
} from '@lakebase/wal-quorum';
import type { Message, NodeStatus, Process, RegisterValue } from './messages.ts';
import { NODES, type World } from './world.ts';

export class Driver implements Process {
  readonly id: string;
  readonly #world: World;
  #life = 0;
  #up = true;
  #value: RegisterValue | null = null;
  /** What the members told some rounds ago, under the same configuration. */
  #earlier: { generation: number; reports: ReadonlyMap<string, MemberReport> } | null = null;
  readonly #nodes = new Map<string, NodeStatus>();
  /** Replace any one member, without a reason. */
  ordered = false;
  /** Chance per round to give up a change under way. */
  abortChance = 0;

  constructor(id: string, world: World) {
    this.id = id;
    this.#world = world;
    world.add(this);
    this.#tick();
  }

  stop(): void {
    this.#life++;
    this.#up = false;
    this.#value = null;
    this.#nodes.clear();
    this.#earlier = null;
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
      for (const node of NODES) this.#send(node, { kind: 'nodeRequest' });
      if (this.#value !== null) this.#round(this.#value);
      this.#tick();
    });
  }

  receive(from: string, message: Message): void {
    if (!this.#up) return;
    if (message.kind === 'nodeStatus') this.#nodes.set(from, message.status);
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
    if (configuration.newMembers !== null) this.#finish(value, configuration.newMembers);
    else {
      this.#retire(configuration);
      this.#begin(value);
    }
  }

  /** Tells every member; makes the ones that are not there yet. */
  #push({ configuration, incarnations }: RegisterValue): void {
    const { random, leavingChance } = this.#world;
    for (const member of votersOf(configuration)) {
      if (configuration.newMembers?.includes(member) === false && !random.chance(leavingChance)) continue;
      const status = this.#nodes.get(nodeOf(member));
      if (status === undefined) continue;
      if (status.member === member && (status.configuration?.generation ?? 0) >= configuration.generation) continue;
      const make = { member, incarnation: incarnations[member] ?? 0 };
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
    const free = NODES.filter((node) => {
      const status = this.#nodes.get(node);
      return status !== undefined && (status.member === null || !voters.includes(status.member));
    }).filter((node) => voters.every((id) => id === leaving || nodeOf(id) !== node));
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

  #swap(value: RegisterValue, configuration: Configuration, more: Readonly<Record<string, number>>): void {
    const { generation } = value.configuration;
    this.#world.note(() => `${this.id} proposes ${JSON.stringify(configuration)}`);
    const incarnations = { ...value.incarnations, ...more };
    this.#send('register', { kind: 'registerSwap', generation, value: { configuration, incarnations } });
  }

  #send(to: string, message: Message): void {
    this.#world.send(this.id, to, message);
  }
}
