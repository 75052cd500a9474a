/** One run: a seed chooses the faults, then everything is healed and must make progress.
 *
 *  The fault model: any number of crashes, restarts, partitions and competing computes; at most one member at a time is damaged (loses durable bytes
 *  or its control file), and a rebuilt one comes back only after every election of before has ended. */
import { AssertionFailed, LakebaseError } from '@lakebase/base';
import { Agent, ELECTION_MS_MAX } from './agent.ts';
import type { Bug } from './bugs.ts';
import { type Checker, InvariantBroken } from './checker.ts';
import { Member } from './member.ts';
import { Reader } from './reader.ts';
import { DELAY_MS_MAX, MEMBERS, World } from './world.ts';

const REBUILD_AFTER_MS = ELECTION_MS_MAX + 3 * DELAY_MS_MAX;
const HEAL_MS_MAX = 6_000;

export interface RunOptions {
  readonly bug?: Bug | null;
  readonly faultMs?: number;
  readonly trace?: boolean;
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
  const failure = attempt(world, options.faultMs ?? 2_500);
  const { clock, checker, digest, trace } = world;
  return { seed, failure, digest, events: clock.events, virtualMs: clock.now, counts: checker.counts, trace: trace ?? [] };
}

/** A finding is a broken invariant, or an assertion or CORRUPT error of the core itself. Anything else is a defect of the simulator. */
function attempt(world: World, faultMs: number): string | null {
  try {
    new Scenario(world).play(faultMs);
    return null;
  } catch (error) {
    if (error instanceof InvariantBroken || error instanceof AssertionFailed || error instanceof LakebaseError)
      return `${error.name}: ${error.message}`;
    throw error;
  }
}

type Fault = 'crash' | 'isolate' | 'block' | 'heal' | 'stop' | 'reread' | 'campaign';

/** What a run is mostly about: broken members, a broken network, or computes that come and go. One entry is one share. */
const MIXES: readonly (readonly Fault[])[] = [
  ['crash', 'crash', 'crash', 'isolate', 'heal', 'stop', 'reread', 'campaign', 'campaign'],
  ['crash', 'isolate', 'isolate', 'block', 'heal', 'heal', 'heal', 'stop', 'reread', 'campaign', 'campaign'],
  ['crash', 'block', 'heal', 'stop', 'stop', 'campaign', 'campaign', 'campaign', 'campaign', 'campaign'],
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

  constructor(world: World) {
    this.#world = world;
    const { random } = world;
    this.#members = MEMBERS.map((id) => new Member(id, world));
    this.#agents = ['compute1', 'compute2', 'compute3'].slice(0, random.between(1, 3)).map((id) => new Agent(id, world));
    this.#reader = new Reader(world);
    this.#pace = random.pick([20, 50, 120]);
    this.#mix = random.pick(MIXES);
    this.#damage = random.chance(0.4);
    world.writeCrashChance = random.pick([0, 0.01, 0.03]);
    world.onWriteCrash = (id) => this.#crash(this.#members.find((member) => member.id === id) as Member);
    world.leaderDeathChance = random.pick([0, 0.3, 0.7]);
    world.copyBytesMax = random.pick([48, 400]);
    world.lossChance = random.pick([0, 0, 0.02, 0.1]);
    world.duplicateChance = random.pick([0, 0.02, 0.1]);
    world.slowChance = random.pick([0, 0.02, 0.1]);
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
    else if (choice === 'isolate')
      this.#world.isolate(random.pick([...MEMBERS, ...this.#agents.map((agent) => agent.id)]), random.chance(0.3));
    else if (choice === 'block') this.#world.block(random.pick(MEMBERS), random.pick(this.#agents).id);
    else if (choice === 'heal') this.#world.heal();
    else if (choice === 'stop') random.pick(this.#agents).stop();
    else if (choice === 'reread') this.#reader.restart();
    else {
      const agent = random.pick(this.#agents);
      if (!agent.busy || random.chance(0.3)) agent.campaign(random.chance(0.7));
    }
  }

  #crash(member: Member): void {
    const { clock, random } = this.#world;
    if (!member.up) return;
    const mayDamage = this.#damage && random.chance(0.15) && this.#members.every((m) => m === member || !m.damaged);
    const damage = mayDamage ? random.pick(['lost', 'rebuilt'] as const) : 'none';
    this.#world.note(() => `${member.id} crashes, ${damage}`);
    member.crash(damage);
    clock.after(damage === 'rebuilt' ? REBUILD_AFTER_MS : random.between(5, random.pick([40, 400])), () => {
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
    world.heal();
    for (const agent of this.#agents) agent.stop();
    this.#agents[0]?.campaign(true);
  }

  /** A compute runs, wrote and acknowledged something new; all members are up, sound and streaming it; the reader has it. */
  #recovered(): boolean {
    const agent = this.#agents[0];
    if (agent === undefined || !agent.running) return false;
    // A member that was damaged in this very term is repaired by the next start.
    if (this.#members.some((m) => m.up && (m.state.damage?.term ?? 0) >= agent.term)) agent.campaign(true);
    const end = this.#world.checker.committedEnd;
    const all = this.#members.every((m) => m.up && !m.damaged && m.state.commitLsn >= agent.startLsn && m.state.term === agent.term);
    return all && agent.acknowledged > agent.startLsn && this.#reader.position > agent.startLsn && end > agent.startLsn;
  }
}
