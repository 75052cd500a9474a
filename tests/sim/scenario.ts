/** One run: a seed chooses the faults, then everything is healed and must make progress.
 *
 *  The fault model: any number of crashes, restarts, partitions, competing computes, changes of membership and deaths of the two drivers that make
 *  them; of each set of members in force at most one is without its data at a time (lost durable bytes, or its whole disk). */
import { AssertionFailed, LakebaseError } from '@lakebase/base';
import { firstTermOf, isQuorum, majorityOf, nodeOf, votersOf } from '@lakebase/wal-quorum';
import { Agent } from './agent.ts';
import type { Bug } from './bugs.ts';
import { type Checker, InvariantBroken } from './checker.ts';
import { Member } from './member.ts';
import { Driver } from './driver.ts';
import { Reader } from './reader.ts';
import type { RegisterValue } from './messages.ts';
import { Register } from './register.ts';
import { Store } from './store.ts';
import { NODES, World } from './world.ts';

const HEAL_MS_MAX = 6_000;

export interface RunOptions {
  readonly bug?: Bug | null;
  readonly faultMs?: number;
  readonly trace?: boolean;
  /** Changes of membership in every run, with members that nobody tells and computes that ask late. */
  readonly membership?: boolean;
  /** Losses of all or most members, and recoveries from the object store; of every fourth seed unless it is said. */
  readonly recovery?: boolean;
}
export interface RunResult {
  readonly seed: number;
  readonly failure: string | null;
  readonly digest: number;
  readonly events: number;
  readonly virtualMs: number;
  readonly counts: Checker['counts'];
  readonly trace: readonly string[];
}

export function run(seed: number, options: RunOptions = {}): RunResult {
  const world = new World(seed, options.bug ?? null, options.trace ?? false);
  const membership = options.membership ?? false;
  const recovery = options.recovery ?? (!membership && seed % 4 === 3);
  const failure = attempt(world, options.faultMs ?? 2_500, recovery ? 'recovery' : membership ? 'membership' : 'any');
  const { clock, checker, digest, trace } = world;
  return { seed, failure, digest, events: clock.events, virtualMs: clock.now, counts: checker.counts, trace: trace ?? [] };
}

/** A finding is a broken invariant, or an assertion or CORRUPT error of the core itself. Anything else is a defect of the simulator. */
function attempt(world: World, faultMs: number, about: About): string | null {
  try {
    new Scenario(world, about).play(faultMs);
    return null;
  } catch (error) {
    if (error instanceof InvariantBroken || error instanceof AssertionFailed || error instanceof LakebaseError)
      return `${error.name}: ${error.message}`;
    throw error;
  }
}

type About = 'any' | 'membership' | 'recovery';

type Fault =
  | 'crash'
  | 'isolate'
  | 'block'
  | 'flap'
  | 'heal'
  | 'stop'
  | 'reread'
  | 'campaign'
  | 'replace'
  | 'stopDriver'
  | 'disaster'
  | 'accept';

/** What a run is mostly about: broken members, a broken network, computes that come and go, or members that do. One entry is one share. */
const MIXES: readonly (readonly Fault[])[] = [
  ['crash', 'crash', 'crash', 'isolate', 'heal', 'stop', 'reread', 'campaign', 'campaign'],
  ['crash', 'isolate', 'isolate', 'block', 'heal', 'heal', 'heal', 'stop', 'reread', 'campaign', 'campaign'],
  ['crash', 'block', 'heal', 'stop', 'stop', 'campaign', 'campaign', 'campaign', 'campaign', 'campaign'],
  ['crash', 'crash', 'isolate', 'block', 'heal', 'heal', 'campaign', 'replace', 'replace', 'replace', 'stopDriver'],
  ['crash', 'flap', 'flap', 'isolate', 'heal', 'stop', 'campaign', 'campaign', 'replace', 'replace', 'replace', 'reread'],
];

const RECOVERY_MIXES: readonly (readonly Fault[])[] = [
  ['crash', 'isolate', 'heal', 'stop', 'campaign', 'campaign', 'campaign', 'disaster', 'accept', 'reread'],
  ['crash', 'flap', 'isolate', 'heal', 'heal', 'campaign', 'campaign', 'replace', 'stopDriver', 'disaster', 'accept'],
];

class Scenario {
  readonly #world: World;
  readonly #members: readonly Member[];
  readonly #agents: readonly Agent[];
  readonly #reader: Reader;
  #faults = true;
  /** How wild this run is. */
  readonly #pace: number;
  readonly #mix: readonly Fault[];
  readonly #damage: boolean;
  readonly #register: Register;
  readonly #store: Store;
  readonly #drivers: readonly Driver[];

  constructor(world: World, about: About) {
    this.#world = world;
    const { random } = world;
    const membership = about === 'membership';
    this.#register = new Register(world);
    this.#store = new Store(world);
    this.#members = NODES.map((id) => new Member(id, world));
    this.#drivers = ['driver1', 'driver2'].map(
      (id) =>
        new Driver(
          id,
          world,
          () => this.#reader,
          () => this.#register.value,
        ),
    );
    this.#agents = ['compute1', 'compute2', 'compute3'].slice(0, random.between(1, 3)).map((id) => new Agent(id, world));
    this.#reader = new Reader(world);
    this.#pace = random.pick([20, 50, 120]);
    this.#mix = random.pick(about === 'recovery' ? RECOVERY_MIXES : membership ? MIXES.slice(-2) : MIXES);
    this.#damage = random.chance(0.4);
    const abortChance = random.pick([0, 0.02, 0.2]);
    for (const driver of this.#drivers) driver.abortChance = abortChance;
    world.writeCrashChance = random.pick([0, 0.01, 0.03]);
    world.onWriteCrash = (id) => this.#crash(this.#members.find((member) => member.id === id) as Member);
    world.leaderDeathChance = random.pick([0, 0.3, 0.7]);
    world.pollMs = random.pick(membership ? [1_500] : [40, 300, 1_500]);
    world.leavingChance = random.pick(membership ? [0.02] : [1, 0.2, 0.02]);
    world.copyBytesMax = random.pick([48, 400]);
    world.lossChance = random.pick([0, 0, 0.02, 0.1]);
    world.duplicateChance = random.pick([0, 0.02, 0.1]);
    world.slowChance = random.pick([0, 0.02, 0.1]);
    if (about !== 'recovery') return;
    world.putChance = random.pick([0.01, 0.1, 0.5]);
    world.onRecovery = (before, after) => this.#onRecovery(before, after);
  }

  play(faultMs: number): void {
    const { clock } = this.#world;
    this.#agents[0]?.campaign(true);
    this.#nextFault();
    while (clock.step(faultMs));
    this.#heal();
    const goal = (): boolean => this.#recovered();
    const deadline = clock.now + HEAL_MS_MAX;
    while (!goal()) if (!clock.step(deadline)) throw new InvariantBroken('no progress after all faults ended');
  }

  #nextFault(): void {
    const { clock, random } = this.#world;
    clock.after(random.between(1, 2 * this.#pace), () => {
      if (!this.#faults) return;
      this.#fault();
      this.#nextFault();
    });
  }

  #fault(): void {
    const { random } = this.#world;
    const choice = random.pick(this.#mix);
    if (choice === 'crash') this.#crash(random.pick(this.#members));
    else if (choice === 'isolate') this.#world.isolate(this.#anyone(), random.chance(0.3));
    else if (choice === 'block') this.#world.block(random.pick(NODES), random.pick([...this.#agents, ...this.#drivers]).id);
    else if (choice === 'flap') this.#flap(this.#anyone(), random.between(2, 6));
    else if (choice === 'replace') random.pick(this.#drivers).ordered = true;
    else if (choice === 'stopDriver') this.#stopDriver(random.pick(this.#drivers));
    else if (choice === 'disaster') this.#disaster();
    else if (choice === 'accept') this.#accept(random.pick(this.#drivers));
    else if (choice === 'heal') this.#world.heal();
    else if (choice === 'stop') random.pick(this.#agents).stop();
    else if (choice === 'reread') this.#reader.restart();
    else {
      const agent = random.pick(this.#agents);
      if (!agent.busy || random.chance(0.3)) agent.campaign(random.chance(0.7));
    }
  }

  #anyone(): string {
    const { random } = this.#world;
    return random.pick([...NODES, ...NODES, ...this.#agents.map((agent) => agent.id), ...this.#drivers.map((driver) => driver.id)]);
  }

  /** Away and back, again and again. */
  #flap(id: string, times: number): void {
    const { clock, random } = this.#world;
    if (times === 0 || !this.#faults) return;
    this.#world.isolate(id, random.chance(0.3));
    clock.after(random.between(5, 60), () => {
      this.#world.heal(id);
      clock.after(random.between(5, 60), () => this.#flap(id, times - 1));
    });
  }

  #stopDriver(driver: Driver): void {
    driver.stop();
    this.#world.clock.after(this.#world.random.between(10, 400), () => driver.start());
  }

  /** All disks of the members are lost, or all but one, one after the other; perhaps the pageserver's as well. */
  #disaster(): void {
    const { clock, random, checker } = this.#world;
    if (checker.counts.recoveries >= 4) return;
    const { configuration } = this.#register.value;
    const all = random.chance(0.6);
    const spared = all ? undefined : random.pick(configuration.members);
    this.#world.note(() => `disaster, spared: ${spared ?? 'nobody'}`);
    for (const id of votersOf(configuration)) {
      const member = this.#members.find((m) => m.id === nodeOf(id)) as Member;
      if (id === spared || (!configuration.members.includes(id) && random.chance(0.5))) continue;
      clock.after(random.between(0, 30), () => {
        if (member.up) member.crash('wiped');
        else member.wipe();
        clock.after(random.between(5, 200), () => member.restart());
      });
    }
    if (random.chance(0.4)) this.#reader.lose();
    for (const driver of this.#drivers) {
      if (random.chance(0.5)) clock.after(random.between(50, 400), () => this.#accept(driver));
      // The drivers do not reach what is left, the others do.
      if (spared === undefined || random.chance(0.5)) continue;
      this.#world.block(nodeOf(spared), driver.id);
      clock.after(random.between(100, 900), () => this.#world.heal(driver.id));
    }
  }

  /** Members of the old set that have not lost their disks. */
  #left({ configuration, incarnations }: RegisterValue): Member[] {
    return configuration.members.flatMap((id) => {
      const home = this.#members.find((m) => m.id === nodeOf(id)) as Member;
      return home.self === id || (home.incarnation === incarnations[id] && !home.made.includes(id)) ? [home] : [];
    });
  }

  /** A person accepts a loss only where there is one. */
  #accept(driver: Driver): void {
    const { value } = this.#register;
    const { members, generation } = value.configuration;
    if (this.#left(value).length >= majorityOf(members) || driver.lossAccepted === generation) return;
    this.#world.checker.counts.accepted++;
    driver.lossAccepted = generation;
  }

  #onRecovery(before: RegisterValue, after: RegisterValue): void {
    const { checker } = this.#world;
    const { members } = before.configuration;
    const left = this.#left(before);
    const holding = left.filter((m) => m.self !== null && members.includes(m.self) && m.log.flushed > m.log.start);
    const undue = after.unasked ? holding.length > 0 : holding.length >= majorityOf(members);
    if (undue) throw new InvariantBroken(`a recovery, and ${holding.map((m) => m.self).join(', ')} had not lost their WAL`);
    const store = this.#store.asked(before.configuration.generation);
    const storeNow = this.#store.wholeEnd(before.lineages);
    checker.recovered(after.before, firstTermOf(after.lineages), { pages: this.#reader.uploaded, store, storeNow });
  }

  /** Without `member`'s data: would a quorum of what is in force still be sound? */
  #maySpare(member: Member): boolean {
    if (member.self === null) return true;
    const { configuration } = this.#register.value;
    const sound = votersOf(configuration).filter((id) => {
      const home = this.#members.find((m) => m.id === nodeOf(id));
      return home !== member && home?.self === id && !home.damaged;
    });
    return isQuorum(configuration, sound);
  }

  #crash(member: Member): void {
    const { clock, random } = this.#world;
    if (!member.up) return;
    const mayDamage = this.#damage && random.chance(0.15) && this.#maySpare(member);
    const damage = mayDamage ? random.pick(['lost', 'wiped'] as const) : 'none';
    this.#world.note(() => `${member.id} crashes, ${damage}`);
    member.crash(damage);
    clock.after(random.between(5, random.pick([40, 400])), () => {
      this.#world.note(() => `${member.id} restarts`);
      member.restart();
    });
  }

  #heal(): void {
    const world = this.#world;
    world.note(() => 'healed');
    this.#faults = false;
    world.lossChance = 0;
    world.duplicateChance = 0;
    world.slowChance = 0;
    world.writeCrashChance = 0;
    world.leaderDeathChance = 0;
    world.pollMs = 40;
    world.leavingChance = 1;
    if (world.putChance > 0) world.putChance = 0.5;
    world.heal();
    for (const driver of this.#drivers) {
      driver.start();
      driver.ordered = false;
      driver.abortChance = 0;
    }
    for (const agent of this.#agents) agent.stop();
    this.#agents[0]?.campaign(true);
  }

  /** A compute runs, wrote and acknowledged something new; no change of membership is under way and nobody is missing; all members are up, sound
   *  and streaming it; the reader has it. */
  #recovered(): boolean {
    if (this.#world.putChance > 0) for (const driver of this.#drivers) this.#accept(driver);
    const agent = this.#agents[0];
    if (agent === undefined || !agent.running) return false;
    // A member that was damaged in this very term is repaired by the next start.
    if (this.#members.some((m) => m.up && (m.state.damage?.term ?? 0) >= agent.term)) agent.campaign(true);
    const end = this.#world.checker.committedEnd;
    const { configuration } = this.#register.value;
    const { generation } = configuration;
    if (configuration.newMembers !== null || agent.generation !== generation) return false;
    const all = configuration.members.every((id) => {
      const m = this.#members.find((home) => home.self === id);
      if (m === undefined || !m.up || m.damaged || m.configuration.generation !== generation) return false;
      return m.state.commitLsn >= agent.startLsn && m.state.term === agent.term;
    });
    return all && agent.acknowledged > agent.startLsn && this.#reader.position > agent.startLsn && end > agent.startLsn;
  }
}
